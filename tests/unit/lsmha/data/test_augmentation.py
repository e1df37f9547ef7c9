"""Augmentation: draws per image, repeatability, and the geometry against a reference of one image at a time."""

import numpy as np
import pytest
import scipy.stats
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms import v2 as torchvision_transforms

from lsmha.config import AugmentConfig
from lsmha.data import Augmentation, normalize
from lsmha.data.augmentation import flip_and_translate
from lsmha.data.randaugment import OPERATIONS, RandAugment

EVERYTHING = {
    "flip": True,
    "translate": 2,
    "randaugment_ops": 2,
    "random_erasing": 0.5,
    "mixup_alpha": 0.8,
    "cutmix_alpha": 1.0,
}
SINGLE = [{name: value} for name, value in EVERYTHING.items()]
NUM_CLASSES = 10


def batch(count=32, channels=3, size=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, channels, size, size), dtype=torch.uint8, generator=generator)
    return images, torch.randint(0, NUM_CLASSES, (count,), generator=generator)


def build(channels=3, **settings):
    return Augmentation(AugmentConfig(**settings), (0.5,) * channels, (0.25,) * channels, NUM_CLASSES)


def test_normalize_is_the_textbook_formula():
    images, _ = batch()
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.3, 0.4)
    expected = (images.float() / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(normalize(images, mean, std), expected)


def test_normalize_after_inference_still_serves_training():
    images, _ = batch(2)
    with torch.inference_mode():
        normalize(images, (0.123,) * 3, (0.456,) * 3)
    weight = torch.ones(1, requires_grad=True)
    (normalize(images, (0.123,) * 3, (0.456,) * 3) * weight).sum().backward()
    assert weight.grad is not None


def test_no_op_equals_normalize():
    images, labels = batch()
    inputs, targets = build()(images, labels)
    assert torch.equal(inputs, normalize(images, (0.5,) * 3, (0.25,) * 3))
    assert torch.equal(targets, labels)


@pytest.mark.parametrize("limit", [0, 3, 40])
def test_flip_and_translate_equal_a_reference_per_image(limit):
    images, _ = batch(count=16, size=8)
    flips = torch.rand(16) < 0.5
    shifts = torch.randint(-limit, limit + 1, (16, 2))
    result = flip_and_translate(images, flips, shifts, limit)
    for image, flip, (down, right), moved in zip(images, flips, shifts.tolist(), result, strict=True):
        source = image.flip(-1) if flip else image
        expected = torch.zeros_like(image)
        for y in range(8):
            for x in range(8):
                if 0 <= y - down < 8 and 0 <= x - right < 8:
                    expected[:, y, x] = source[:, y - down, x - right]
        assert torch.equal(moved, expected)


def test_flips_and_shifts_are_drawn_over_their_whole_range():
    image = torch.zeros(1, 1, 9, 9, dtype=torch.uint8)
    image[0, 0, 4, 3] = 255
    images = image.expand(2000, -1, -1, -1)
    inputs, _ = build(channels=1, flip=True, translate=2)(images, torch.zeros(2000, dtype=torch.int64))
    where = (inputs[:, 0] > 0).nonzero()
    assert len(where) == 2000
    assert where[:, 1].unique().tolist() == [2, 3, 4, 5, 6]
    assert where[:, 2].unique().tolist() == [1, 2, 3, 4, 5, 6, 7]
    flipped, _ = build(channels=1, flip=True)(images, torch.zeros(2000, dtype=torch.int64))
    share = (flipped[:, 0, 4, 5] > 0).float().mean()
    assert 0.45 < share < 0.55


@pytest.mark.parametrize("settings", SINGLE, ids=lambda settings: next(iter(settings)))
def test_parameters_differ_between_equal_images(settings):
    images, labels = batch(count=2)
    images, labels = images[:1].repeat(64, 1, 1, 1), torch.arange(64) % NUM_CLASSES
    if "mixup_alpha" in settings or "cutmix_alpha" in settings:
        images = torch.stack([images[0], 255 - images[0]]).repeat(32, 1, 1, 1)
    inputs, _ = build(**settings)(images, labels)
    assert len(inputs.unique(dim=0)) >= (2 if "flip" in settings else 8)


@pytest.mark.parametrize(("channels", "size"), [(3, 32), (1, 8)])
@pytest.mark.parametrize("settings", [EVERYTHING, *SINGLE], ids=lambda settings: "-".join(settings))
def test_shapes_and_repeatability(settings, channels, size):
    images, labels = batch(channels=channels, size=size)
    before = images.clone()
    augment = build(channels, **settings)
    torch.manual_seed(1)
    inputs, targets = augment(images, labels)
    torch.manual_seed(1)
    again = build(channels, **settings)(images, labels)
    assert torch.equal(inputs, again[0])
    assert torch.equal(targets, again[1])
    assert not torch.equal(inputs, augment(images, labels)[0])
    assert torch.equal(images, before)
    assert inputs.shape == images.shape
    assert inputs.dtype == torch.float32
    assert inputs.isfinite().all()
    if "mixup_alpha" in settings or "cutmix_alpha" in settings:
        assert targets.shape == (len(labels), NUM_CLASSES)
        torch.testing.assert_close(targets.sum(1), torch.ones(len(labels)))
        assert (targets >= 0).all()
    else:
        assert torch.equal(targets, labels)


@pytest.mark.parametrize("name", ["mixup_alpha", "cutmix_alpha"])
def test_soft_targets_are_the_shares_of_the_mixed_images(name):
    # Image i is constant with a level of its own, so the mixture's weights can be read off its pixels.
    levels = torch.tensor([0, 255], dtype=torch.uint8)
    images = levels.view(2, 1, 1, 1).repeat(16, 1, 32, 32)
    labels = torch.tensor([0, 1]).repeat(16)
    inputs, targets = Augmentation(AugmentConfig(**{name: 1.0}), (0.0,), (1.0,), 2)(images, labels)
    torch.testing.assert_close(inputs.mean((1, 2, 3)), targets[:, 1], atol=1e-5, rtol=0)
    assert targets[:, 1].std() > 0.05


def test_mixup_and_cutmix_take_turns():
    images = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).repeat(8, 1, 16, 16)
    augment = Augmentation(AugmentConfig(mixup_alpha=1.0, cutmix_alpha=1.0), (0.0,), (1.0,), 2)
    kinds = set()
    for _ in range(20):
        inputs, _ = augment(images, torch.tensor([0, 1]).repeat(8))
        # Within a mixed-up image all pixels are equal; within cut-and-mixed ones, each is 0 or 1.
        kinds.add("mixup" if torch.equal(inputs.amin((1, 2, 3)), inputs.amax((1, 2, 3))) else "cutmix")
    assert kinds == {"mixup", "cutmix"}


def test_mixup_draws_beta_weights_for_each_image():
    torch.manual_seed(0)
    images = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).repeat(2000, 1, 2, 2)
    augment = Augmentation(AugmentConfig(mixup_alpha=0.8), (0.0,), (1.0,), 4000)
    inputs, targets = augment(images, torch.arange(4000))
    own = targets.diagonal()[targets.diagonal() < 1]  # the few that are their own partner have no other
    assert scipy.stats.kstest(own, scipy.stats.beta(0.8, 0.8).cdf).pvalue > 0.01
    levels = images[:, 0, 0, 0] / 255
    torch.testing.assert_close(inputs[:, 0, 0, 0], targets @ levels)


def test_cutmix_cuts_the_rectangles_of_its_authors():
    def published_share():
        """`rand_bbox` of the authors' code, for one image."""
        ratio = np.sqrt(1 - drawn.beta(1.0, 1.0))
        kept = np.ones((24, 32))
        edges = []
        for side in kept.shape:
            cut, middle = int(side * ratio), drawn.integers(side)
            edges.append(slice(np.clip(middle - cut // 2, 0, side), np.clip(middle + cut // 2, 0, side)))
        kept[tuple(edges)] = 0
        return kept.mean()

    drawn = np.random.default_rng(0)
    torch.manual_seed(0)
    images = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).repeat(2000, 1, 24, 32)
    labels = torch.tensor([0, 1]).repeat(2000)
    inputs, targets = Augmentation(AugmentConfig(cutmix_alpha=1.0), (0.0,), (1.0,), 2)(images, labels)
    cut = inputs[:, 0] != images[:, 0] / 255
    assert torch.equal(cut, cut.any(2, keepdim=True) & cut.any(1, keepdim=True))
    assert cut.float().mean((1, 2))[cut.any((1, 2))].std() > 0.1
    # Where the partner is of the other label, its share is the part that was cut out.
    mixed = cut.any((1, 2))
    own = targets[torch.arange(4000), labels]
    torch.testing.assert_close(1 - own[mixed], cut[mixed].float().mean((1, 2)))
    published = np.array([published_share() for _ in range(4000)])
    assert scipy.stats.ks_2samp(own[mixed], published[published < 1]).pvalue > 0.01


def test_random_erasing_erases_the_rectangles_of_torchvisions_for_one_image():
    images = torch.full((4000, 3, 32, 32), 255, dtype=torch.uint8)
    torch.manual_seed(0)
    inputs, _ = build(random_erasing=0.5)(images, torch.zeros(4000, dtype=torch.int64))
    erased = (inputs == 0).all(1)
    assert torch.equal(erased, (inputs == 0).any(1))
    assert torch.equal(erased, erased.any(2, keepdim=True) & erased.any(1, keepdim=True))
    chosen = erased.any((1, 2))
    assert 0.46 < chosen.float().mean() < 0.54
    assert erased.float().mean((1, 2)).max() < 0.5
    published = torchvision_transforms.RandomErasing(p=1.0, scale=(0.02, 0.33), ratio=(0.3, 3.3))
    one_by_one = torch.stack([published(torch.ones(1, 32, 32))[0] == 0 for _ in range(2000)])
    for measure in (
        lambda pixels: pixels.sum((1, 2)),  # areas
        lambda pixels: pixels.any(2).sum(1),  # heights
        lambda pixels: pixels.any(2).int().argmax(1),  # first rows
        lambda pixels: pixels.any(1).int().argmax(1),  # first columns
    ):
        assert scipy.stats.ks_2samp(measure(erased[chosen]), measure(one_by_one)).pvalue > 0.01


def smooth_batch(count, channels=3, size=32):
    return torch.nn.functional.interpolate(batch(count, channels, size=4)[0], size=size, mode="bilinear")


@pytest.mark.parametrize(("channels", "size"), [(3, 32), (1, 13)])
@pytest.mark.parametrize("magnitude", [9, 27])  # torchvision's threshold of solarize is none of the levels there
def test_randaugment_equals_torchvisions_for_one_image_after_another(magnitude, channels, size):
    published = torchvision_transforms.RandAugment(1, magnitude, interpolation=InterpolationMode.BILINEAR)
    space = published._AUGMENTATION_SPACE
    assert {name.replace("_", "") for name in OPERATIONS} == {name.lower() for name in space}
    drawn = torch.arange(2 * len(OPERATIONS)).repeat(2)[torch.randperm(4 * len(OPERATIONS))]
    operations, signs = drawn // 2, 2 * (drawn % 2) - 1
    images = smooth_batch(len(drawn), channels, size)
    changed = RandAugment(1, magnitude).apply(images, operations, signs)
    for image, result, operation, sign in zip(images, changed, operations, signs, strict=True):
        name = next(name for name in space if name.lower() == OPERATIONS[operation].replace("_", ""))
        magnitudes, signed = space[name]
        levels = magnitudes(31, size, size)
        level = 0.0 if levels is None else float(levels[magnitude]) * (sign.item() if signed else 1)
        expected = published._apply_image_or_video_transform(
            image, name, level, interpolation=published.interpolation, fill=published._fill
        )
        assert (result.int() - expected.int()).abs().max() <= 1, name  # it cuts off where lsmha rounds


def test_randaugment_draws_operations_and_signs_evenly_for_each_image(monkeypatch):
    drawn = []
    monkeypatch.setattr(RandAugment, "apply", lambda self, images, *draws: drawn.append(draws) or images)
    torch.manual_seed(0)
    RandAugment(2, 9)(torch.zeros(14_000, 3, 2, 2, dtype=torch.uint8))
    for operations, signs in drawn:
        assert (operations.bincount() - 1000).abs().max() < 150
        assert signs.unique().tolist() == [-1, 1]
        assert abs(signs.float().mean()) < 0.05
    assert not torch.equal(drawn[0][0], drawn[1][0])


def test_randaugment_grows_with_its_magnitude():
    images = smooth_batch(256)
    unchanged = []
    distances = []
    for magnitude in (0, 5, 15, 30):
        torch.manual_seed(0)
        changed = RandAugment(1, magnitude)(images)
        difference = (changed.float() - images.float()).abs().mean((1, 2, 3))
        unchanged.append((difference < 1).float().mean().item())
        distances.append(difference.mean().item())
    # Of 14 operations only auto_contrast and equalize have no strength.
    assert unchanged[0] > 0.75
    assert distances == sorted(distances)


@pytest.mark.parametrize("count", [1, 2])
def test_tiny_batches(count):
    images, labels = batch(count=count)
    for settings in (EVERYTHING, *SINGLE):
        inputs, _ = build(**settings)(images, labels)
        assert inputs.shape == images.shape
