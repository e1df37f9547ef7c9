"""Fields: additive, equal to plain silencing, equal to the published computation, streamed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_data import tiny_dataset, tiny_model
from torch import Tensor, nn

from lsmha.analysis.fields import group_fields, measure_fields
from lsmha.analysis.readouts import ReadOut, build_readouts
from lsmha.analysis.streaming import stream_taps
from lsmha.analysis.taps import Tap, taps_of, watch_taps
from lsmha.data import Dataset, LabeledImages, normalize
from lsmha.models import CCT
from lsmha.training import evaluate

CPU = torch.device("cpu")
POOLINGS = ("mean", "sequence", "flatten")
ALL_TAPS = ("attn", "mlp", "block")


def network(**settings: Any) -> CCT:
    """An untrained network whose blocks all say something, in eval mode."""
    torch.manual_seed(0)
    model = CCT(tiny_model(**{"embed_dim": 12, "num_heads": 4, "depth": 3, "num_conv_blocks": 1, **settings}))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model.eval()


def readouts_of(model: CCT, pooling: str, kinds: tuple[str, ...] = ALL_TAPS) -> dict[Tap, ReadOut]:
    return build_readouts(model.config, taps_of(model.config, kinds), pooling, device=CPU, seed=1)


def tokens_of(model: CCT, taps: list[Tap], dataset: Dataset) -> dict[Tap, Tensor]:
    kept: dict[Tap, Tensor] = {}
    with watch_taps(model, taps, kept.__setitem__), torch.no_grad():
        model(normalize(dataset.test.images, dataset.mean, dataset.std))
    return kept


def mean_by_label(values: Tensor, dataset: Dataset) -> Tensor:
    """Mean of values (n, ...) over the test images of each label."""
    return torch.stack([values[dataset.test.labels == label].mean(dim=0) for label in range(dataset.num_classes)])


def test_taps_read_what_the_blocks_compute() -> None:
    model, dataset = network(), tiny_dataset()
    taps = taps_of(model.config, ALL_TAPS)
    assert [str(tap) for tap in taps] == [
        "block0.block",
        *(f"block{block}.{kind}" for block in (1, 2) for kind in ALL_TAPS),
    ]
    tokens = tokens_of(model, taps, dataset)
    with torch.no_grad():
        heads = model.forward_heads(normalize(dataset.test.images, dataset.mean, dataset.std)).head_outputs
    for block in (1, 2):
        torch.testing.assert_close(tokens[Tap("attn", block)], heads[block].transpose(1, 2).flatten(2))
        assert tokens[Tap("mlp", block)].shape[-1] == model.config.mlp_dim
        with torch.no_grad():
            hidden = model.blocks[block].linear2(tokens[Tap("mlp", block)])
            attended = model.blocks[block].attn.proj(tokens[Tap("attn", block)])
            stream = model.blocks[block].norm1(tokens_before(model, block, tokens) + attended)
        torch.testing.assert_close(tokens[Tap("block", block)], stream + hidden, rtol=1e-4, atol=1e-4)


def tokens_before(model: CCT, block: int, tokens: dict[Tap, Tensor]) -> Tensor:
    before = tokens[Tap("block", block - 1)]
    return model.positional_embedding(before) if block == model.config.num_conv_blocks else before


def test_no_hook_stays() -> None:
    model = network()
    with pytest.raises(RuntimeError), watch_taps(model, taps_of(model.config, ALL_TAPS), lambda *_: None):
        raise RuntimeError
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("pooling", POOLINGS)
def test_fields_add_up(pooling: str) -> None:
    model, dataset = network(), tiny_dataset()
    readouts = readouts_of(model, pooling)
    fields, accuracy, _ = measure_fields(model, readouts, dataset, device=CPU)
    tokens = tokens_of(model, list(readouts), dataset)
    for tap, readout in readouts.items():
        with torch.no_grad():
            logits = readout(tokens[tap])
        expected = mean_by_label(logits, dataset)
        torch.testing.assert_close(fields[tap].logits, expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(fields[tap].units.sum(dim=0), expected, rtol=0, atol=1e-5)
        assert accuracy[tap].readout == pytest.approx(
            (logits.argmax(dim=1) == dataset.test.labels).float().mean().item()
        )
        heads = fields[tap].heads
        assert (heads is not None) == (tap.kind == "attn")
        if heads is not None:
            torch.testing.assert_close(heads.sum(dim=0), expected, rtol=0, atol=1e-5)
            nodes = fields[tap].units.unflatten(0, (model.config.num_heads, -1)).sum(dim=1)
            torch.testing.assert_close(nodes, heads, rtol=0, atol=1e-5)


def silenced_but(tokens: Tensor, units: slice) -> Tensor:
    kept = torch.zeros_like(tokens)
    kept[..., units] = tokens[..., units]
    return kept


def plain_loop(readout: ReadOut, tokens: Tensor, dataset: Dataset, groups: int, convention: str) -> Tensor:
    """Fields of each group by silencing all others and reading the test set out again, (groups, K, K)."""
    size = tokens.shape[-1] // groups
    matrices = []
    for group in range(groups):
        only = silenced_but(tokens, slice(group * size, (group + 1) * size))
        if convention == "shared" and readout.scores is not None:
            weights = readout.scores(tokens).softmax(dim=1)
            logits = readout.fc((weights * only).sum(dim=1))
        else:
            logits = readout(only)
        matrices.append(mean_by_label(logits, dataset))
    return torch.stack(matrices)


@pytest.mark.parametrize("convention", ["shared", "silenced"])
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("num_heads", [1, 3, 12])
def test_one_pass_equals_silencing_one_by_one(pooling: str, convention: str, num_heads: int) -> None:
    model, dataset = network(num_heads=num_heads), tiny_dataset()
    readouts = readouts_of(model, pooling)
    fields, accuracy, _ = measure_fields(model, readouts, dataset, device=CPU, pooling_weights=convention)
    for tap, tokens in tokens_of(model, list(readouts), dataset).items():
        with torch.no_grad():
            units = plain_loop(readouts[tap], tokens, dataset, tokens.shape[-1], convention)
            torch.testing.assert_close(fields[tap].units, units, rtol=1e-5, atol=1e-5)
            if tap.kind == "attn":
                heads = plain_loop(readouts[tap], tokens, dataset, num_heads, convention)
                torch.testing.assert_close(fields[tap].heads, heads, rtol=1e-5, atol=1e-5)
                assert accuracy[tap].alone.shape == accuracy[tap].silenced.shape == (num_heads,)


def test_silencing_in_the_network_is_silencing_at_the_tap() -> None:
    model, dataset = network(), tiny_dataset()
    readouts = readouts_of(model, "sequence", ("attn",))
    fields, accuracy, _ = measure_fields(model, readouts, dataset, device=CPU, pooling_weights="silenced")
    inputs, last = normalize(dataset.test.images, dataset.mean, dataset.std), Tap("attn", 2)
    for head in range(4):
        mask = torch.ones(3, 4)
        mask[2] = torch.eye(4)[head]
        kept: dict[Tap, Tensor] = {}
        with watch_taps(model, [last], kept.__setitem__), torch.no_grad():
            model(inputs, mask)
            logits = readouts[last](kept[last])
        torch.testing.assert_close(fields[last].heads[head], mean_by_label(logits, dataset), rtol=1e-5, atol=1e-5)
        correct = (logits.argmax(dim=1) == dataset.test.labels).float().mean()
        assert accuracy[last].alone[head] == correct


def test_accuracy_without_a_head_is_that_of_the_other_heads() -> None:
    model, dataset = network(), tiny_dataset()
    readouts = readouts_of(model, "mean", ("attn",))
    _, accuracy, _ = measure_fields(model, readouts, dataset, device=CPU)
    for tap in (Tap("attn", 1), Tap("attn", 2)):
        tokens = tokens_of(model, [tap], dataset)[tap].unflatten(2, (4, -1))
        for head in range(4):
            others = tokens.clone()
            others[:, :, head] = 0
            with torch.no_grad():
                predicted = readouts[tap](others.flatten(2)).argmax(dim=1)
            assert accuracy[tap].silenced[head] == (predicted == dataset.test.labels).float().mean()


class SmallVGG(nn.Module):
    """Two convolutional layers with batch norm and a bias-free classifier, in the style of the published code."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(6, 10, 3, padding=1), nn.BatchNorm2d(10), nn.ReLU()),
        )
        self.classifier = nn.Linear(10 * 4 * 4, 3, bias=False)


def test_fields_of_filters_equal_the_published_computation() -> None:
    """arXiv:2501.12880's code contracts each filter's feature map with that filter's part of the flattened weights."""
    torch.manual_seed(0)
    vgg, dataset = SmallVGG().eval(), tiny_dataset()
    with torch.no_grad():
        maps = vgg.features(normalize(dataset.test.images, dataset.mean, dataset.std))
        weight = vgg.classifier.weight.view(3, 10, 4, 4)
        published = mean_by_label(torch.einsum("bchw,kchw->bck", maps, weight), dataset).transpose(0, 1)
        ours = group_fields(
            mean_by_label(maps.flatten(2).transpose(1, 2), dataset), weight.flatten(2).transpose(1, 2), 10
        )
    assert ours.shape == (10, 3, 3)
    torch.testing.assert_close(ours, published, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["conv3x3", "residual", "depthwise"])
def test_fields_of_conv_blocks_equal_the_published_computation(kind: str) -> None:
    model, dataset = network(num_conv_blocks=3, conv_kind=kind), tiny_dataset()
    readouts = readouts_of(model, "flatten")
    fields, _, _ = measure_fields(model, readouts, dataset, device=CPU)
    for tap, tokens in tokens_of(model, list(readouts), dataset).items():
        weight = readouts[tap].fc.weight.detach().view(3, *tokens.shape[1:])
        published = mean_by_label(torch.einsum("bnc,knc->bck", tokens, weight), dataset).transpose(0, 1)
        torch.testing.assert_close(fields[tap].units, published, rtol=1e-5, atol=1e-5)
        assert fields[tap].heads is None


@pytest.mark.parametrize("batch_size", [1, 7, 500])
def test_batches_do_not_matter(batch_size: int) -> None:
    model, dataset = network(), tiny_dataset()
    readouts = readouts_of(model, "sequence")
    whole, right, network_right = measure_fields(model, readouts, dataset, device=CPU, batch_size=30)
    parts, right_in_parts, network_right_in_parts = measure_fields(
        model, readouts, dataset, device=CPU, batch_size=batch_size
    )
    expected = evaluate(model, dataset.test, dataset, device=CPU).accuracy
    assert network_right_in_parts == network_right == pytest.approx(expected)
    for tap in readouts:
        torch.testing.assert_close(parts[tap].units, whole[tap].units, rtol=1e-5, atol=1e-6)
        assert right_in_parts[tap].readout == pytest.approx(right[tap].readout)


def test_memory_holds_pooled_features_of_one_batch() -> None:
    model, dataset = network(), tiny_dataset()
    readouts = readouts_of(model, "mean")
    batches = list(stream_taps(model, readouts, dataset.test, dataset, device=CPU, batch_size=8))
    assert [len(labels) for _, labels, _ in batches] == [8, 8, 8, 6]
    for features, labels, _ in batches:
        for tap, kept in features.items():
            assert kept.shape == (len(labels), 1, readouts[tap].fc.in_features)


def test_every_label_needs_a_test_image() -> None:
    model, dataset = network(), tiny_dataset()
    keep = dataset.test.labels != 1
    fewer = LabeledImages(dataset.test.images[keep], dataset.test.labels[keep])
    reduced = Dataset.from_splits(
        "reduced", train=dataset.train, val=dataset.val, test=fewer, class_names=dataset.class_names
    )
    with pytest.raises(ValueError, match=r"test set of reduced: every label needs an image, but 1 lack one: b"):
        measure_fields(model, readouts_of(model, "mean"), reduced, device=CPU)
