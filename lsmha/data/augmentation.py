"""Batched augmentation on the training device, with parameters drawn for each image apart.

torchvision's transforms draw one set of parameters for a whole batch; kornia's draw for each image, but on the host,
where they take longer than a small network's step on a GPU. Here a batch takes a few calls, whatever was drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from lsmha.config import AugmentConfig
from lsmha.shapes import Bool, Float, Float32, Int, Shaped, UInt8


def normalize(
    images: UInt8[Tensor, "B C H W"], mean: Sequence[float], std: Sequence[float]
) -> Float32[Tensor, "B C H W"]:
    """Images as a model takes them: (x / 255 - mean) / std.

    Args:
        images: Pixels.
        mean: C means, in [0, 1].
        std: C standard deviations, in [0, 1].

    Returns:
        Images on the same device.
    """
    scale, shift = _channel_constants(tuple(mean), tuple(std), images.device)
    return torch.addcmul(shift, images.float(), scale)


PIXELS_AT_ONCE = 4 * 2**20
"""Values of the images that RandAugment gets together, unless a batch has more."""


class Augmentation:
    """Random changes to training batches, in this order: flip and translate, RandAugment, normalization, random erasing
    (to the mean of the training pixels), mixup or cutmix.

    Every draw comes from torch's global generators, so that `torch.manual_seed` makes a batch repeat bit by bit.
    RandAugment is drawn on the host, the rest on the images' device, which is never waited for.
    """

    def __init__(self, config: AugmentConfig, mean: Sequence[float], std: Sequence[float], num_classes: int) -> None:
        """
        Args:
            config: what to apply.
            mean: mean of each channel, in [0, 1].
            std: standard deviation of each channel, in [0, 1].
            num_classes: labels K, for soft targets.
        """
        self._config = config
        self._mean, self._std = tuple(mean), tuple(std)
        self._num_classes = num_classes
        if config.randaugment_ops:
            from lsmha.data.randaugment import RandAugment  # here, because runs without it must not load torchvision

            self._randaugment = RandAugment(config.randaugment_ops, config.randaugment_magnitude)

    def __call__(
        self, images: UInt8[Tensor, "B C H W"], labels: Int[Tensor, " B"]
    ) -> tuple[Float32[Tensor, "B C H W"], Int[Tensor, " B"] | Float32[Tensor, "B K"]]:
        """Augment and normalize one batch.

        Args:
            images: Not changed.
            labels: On the same device.

        Returns:
            Images and targets: `labels` itself, or with mixup or cutmix the probabilities of the labels.
        """
        return self.normalize_and_mix(self.distort(images), labels)

    def batches_at_once(self, pixels: int) -> int:
        """Of how many batches, each of so many values, `distort` had best get the images together.

        RandAugment takes some hundred calls, for however many images; the rest takes few.
        """
        return max(1, PIXELS_AT_ONCE // pixels) if self._config.randaugment_ops else 1

    @torch.no_grad()
    def distort(self, images: UInt8[Tensor, "B C H W"]) -> UInt8[Tensor, "B C H W"]:
        """Do what is done to the pixels of each image apart: flip and translate, RandAugment.

        Args:
            images: Of one batch or of several; not changed.
        """
        config = self._config
        if config.flip or config.translate:
            images = flip_and_translate(images, *self._draw_geometry(images))
        if config.randaugment_ops:
            images = self._randaugment(images)
        return images

    @torch.no_grad()
    def normalize_and_mix(
        self, images: UInt8[Tensor, "B C H W"], labels: Int[Tensor, " B"]
    ) -> tuple[Float32[Tensor, "B C H W"], Int[Tensor, " B"] | Float32[Tensor, "B K"]]:
        """Do the rest to the images of one batch; takes and returns what a call does."""
        config = self._config
        inputs = normalize(images, self._mean, self._std)
        if config.random_erasing:
            inputs = inputs.masked_fill(self._draw_erased(inputs), 0)
        if config.mixup_alpha and config.cutmix_alpha:
            mix = self._mix_up if torch.rand(()) < 0.5 else self._cut_mix
        elif config.mixup_alpha:
            mix = self._mix_up
        elif config.cutmix_alpha:
            mix = self._cut_mix
        else:
            return inputs, labels
        return mix(inputs, labels)

    def _draw_geometry(self, images: UInt8[Tensor, "B C H W"]) -> tuple[Bool[Tensor, " B"], Int[Tensor, "B 2"], int]:
        count, device, limit = len(images), images.device, self._config.translate
        flips = torch.rand(count, device=device) < (0.5 if self._config.flip else 0)
        shifts = torch.randint(-limit, limit + 1, (count, 2), device=device)
        return flips, shifts, limit

    def _draw_erased(self, inputs: Float32[Tensor, "B C H W"]) -> Bool[Tensor, "B 1 H W"]:
        """Pixels to erase: 2 to 33 % of an image, 0.3 to 3.3 times as high as wide (Zhong et al.,
        arXiv:1708.04896, with torchvision's ranges)."""
        count, _, height, width = inputs.shape
        chosen, area, aspect, down, right = torch.rand(5, count, device=inputs.device)
        area = (0.02 + 0.31 * area) * height * width
        aspect = torch.exp(math.log(0.3) + math.log(3.3 / 0.3) * aspect)
        heights = (area * aspect).sqrt().round().clamp(1, height)
        widths = (area / aspect).sqrt().round().clamp(1, width)
        tops, lefts = (down * (height - heights + 1)).floor(), (right * (width - widths + 1)).floor()
        pixels = rectangles(tops, lefts, heights, widths, size=(height, width))
        return pixels & (chosen < self._config.random_erasing).view(-1, 1, 1, 1)

    def _mix_up(
        self, inputs: Float32[Tensor, "B C H W"], labels: Int[Tensor, " B"]
    ) -> tuple[Float32[Tensor, "B C H W"], Float32[Tensor, "B K"]]:
        """Zhang et al., arXiv:1710.09412."""
        weights, partners = self._draw_mixture(inputs, self._config.mixup_alpha)
        mixed = torch.lerp(inputs[partners], inputs, weights.view(-1, 1, 1, 1))
        return mixed, self._soft_targets(labels, labels[partners], weights)

    def _cut_mix(
        self, inputs: Float32[Tensor, "B C H W"], labels: Int[Tensor, " B"]
    ) -> tuple[Float32[Tensor, "B C H W"], Float32[Tensor, "B K"]]:
        """Yun et al., arXiv:1905.04899: the partner shows in a rectangle around any pixel, as far as it is inside."""
        weights, partners = self._draw_mixture(inputs, self._config.cutmix_alpha)
        height, width = inputs.shape[-2:]
        down, right = torch.rand(2, len(inputs), device=inputs.device)
        # Half of each side is cut to whole pixels, as in the authors' code.
        half_height, half_width = (((1 - weights).sqrt() * side / 2).floor() for side in (height, width))
        tops, lefts = (down * height).floor() - half_height, (right * width).floor() - half_width
        pixels = rectangles(tops, lefts, 2 * half_height, 2 * half_width, size=(height, width))
        shares = 1 - pixels.float().mean((1, 2, 3))
        return torch.where(pixels, inputs[partners], inputs), self._soft_targets(labels, labels[partners], shares)

    def _draw_mixture(
        self, inputs: Float32[Tensor, "B C H W"], alpha: float
    ) -> tuple[Float32[Tensor, " B"], Int[Tensor, " B"]]:
        """Weight of each image and its partner."""
        alphas = torch.full((len(inputs),), alpha, device=inputs.device)
        weights = torch.distributions.Beta(alphas, alphas, validate_args=False).sample()
        return weights, torch.randperm(len(inputs), device=inputs.device)

    def _soft_targets(
        self, own: Int[Tensor, " B"], partner: Int[Tensor, " B"], weights: Float32[Tensor, " B"]
    ) -> Float32[Tensor, "B K"]:
        targets = torch.zeros(len(own), self._num_classes, device=own.device)
        targets.scatter_add_(1, own.unsqueeze(1), weights.unsqueeze(1))
        return targets.scatter_add_(1, partner.unsqueeze(1), 1 - weights.unsqueeze(1))


def flip_and_translate(
    images: Shaped[Tensor, "B C H W"], flips: Bool[Tensor, " B"], shifts: Int[Tensor, "B 2"], limit: int
) -> Shaped[Tensor, "B C H W"]:
    """Mirror images left to right, then shift them; pixels from outside are 0.

    Args:
        images: Of any type, which stays.
        flips: Which images to mirror.
        shifts: Pixels down and to the right, in -limit..limit.
        limit: Largest shift, in pixels.
    """
    count, channels, height, width = images.shape
    rows = torch.arange(height, device=images.device) - shifts[:, :1] + limit
    columns = torch.arange(width, device=images.device) - shifts[:, 1:]
    columns = torch.where(flips.unsqueeze(1), width - 1 - columns, columns) + limit
    padded = F.pad(images, (limit,) * 4).flatten(2)
    source = (rows.unsqueeze(2) * (width + 2 * limit) + columns.unsqueeze(1)).view(count, 1, -1)
    return padded.gather(2, source.expand(-1, channels, -1)).view(images.shape)


def rectangles(
    tops: Float[Tensor, " B"],
    lefts: Float[Tensor, " B"],
    heights: Float[Tensor, " B"],
    widths: Float[Tensor, " B"],
    size: tuple[int, int],
) -> Bool[Tensor, "B 1 H W"]:
    """Pixels inside a rectangle for each image, of which parts may be outside the image.

    Args:
        tops: First row.
        lefts: First column.
        heights: In pixels.
        widths: In pixels.
        size: H and W.
    """
    rows, columns = (torch.arange(side, device=tops.device) for side in size)
    in_rows = (rows >= tops.unsqueeze(1)) & (rows < (tops + heights).unsqueeze(1))
    in_columns = (columns >= lefts.unsqueeze(1)) & (columns < (lefts + widths).unsqueeze(1))
    return (in_rows.unsqueeze(2) & in_columns.unsqueeze(1)).unsqueeze(1)


@lru_cache(maxsize=16)
def _channel_constants(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[Float32[Tensor, "1 C 1 1"], Float32[Tensor, "1 C 1 1"]]:
    """Factor and summand that normalize 0..255; kept, because copying them to a GPU makes it wait."""
    # Evaluation may come first, and a cached inference tensor would be of no use to training.
    with torch.inference_mode(False):
        means, stds = (torch.tensor(values, device=device).view(1, -1, 1, 1) for values in (mean, std))
        return 1 / (255 * stds), -means / stds
