"""Batched augmentation on the training device, with parameters drawn for each image apart.

torchvision's transforms draw one set of parameters for a whole batch; kornia's draw for each image, but on the host,
where they take longer than a small network's step on a GPU. Here a batch takes a few calls, whatever was drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch.nn import functional as F

from lsmha.config import AugmentConfig


def normalize(images: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """Images as a model takes them: (x / 255 - mean) / std.

    Args:
        images: (B, C, H, W) uint8.
        mean: C means, in [0, 1].
        std: C standard deviations, in [0, 1].

    Returns:
        (B, C, H, W) float32, on the images' device.
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

    def __call__(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Augment and normalize one batch.

        Args:
            images: (B, C, H, W) uint8; not changed.
            labels: (B,) int64, on the same device.

        Returns:
            Images (B, C, H, W) float32, and targets: `labels` itself, or with mixup or cutmix the probabilities of
            the labels, (B, K) float32.
        """
        return self.normalize_and_mix(self.distort(images), labels)

    def batches_at_once(self, pixels: int) -> int:
        """Of how many batches, each of so many values, `distort` had best get the images together.

        RandAugment takes some hundred calls, for however many images; the rest takes few.
        """
        return max(1, PIXELS_AT_ONCE // pixels) if self._config.randaugment_ops else 1

    @torch.no_grad()
    def distort(self, images: torch.Tensor) -> torch.Tensor:
        """Do what is done to the pixels of each image apart: flip and translate, RandAugment.

        Args:
            images: (B, C, H, W) uint8, of one batch or of several; not changed.

        Returns:
            (B, C, H, W) uint8.
        """
        config = self._config
        if config.flip or config.translate:
            images = flip_and_translate(images, *self._draw_geometry(images))
        if config.randaugment_ops:
            images = self._randaugment(images)
        return images

    @torch.no_grad()
    def normalize_and_mix(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Do the rest to the images (B, C, H, W) uint8 of one batch; takes and returns what a call does."""
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

    def _draw_geometry(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int]:
        count, device, limit = len(images), images.device, self._config.translate
        flips = torch.rand(count, device=device) < (0.5 if self._config.flip else 0)
        shifts = torch.randint(-limit, limit + 1, (count, 2), device=device)
        return flips, shifts, limit

    def _draw_erased(self, inputs: torch.Tensor) -> torch.Tensor:
        """Pixels (B, 1, H, W) bool to erase: 2 to 33 % of an image, 0.3 to 3.3 times as high as wide (Zhong et al.,
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

    def _mix_up(self, inputs: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Zhang et al., arXiv:1710.09412."""
        weights, partners = self._draw_mixture(inputs, self._config.mixup_alpha)
        mixed = torch.lerp(inputs[partners], inputs, weights.view(-1, 1, 1, 1))
        return mixed, self._soft_targets(labels, labels[partners], weights)

    def _cut_mix(self, inputs: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
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

    def _draw_mixture(self, inputs: torch.Tensor, alpha: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight of each image and its partner, both (B,)."""
        alphas = torch.full((len(inputs),), alpha, device=inputs.device)
        weights = torch.distributions.Beta(alphas, alphas, validate_args=False).sample()
        return weights, torch.randperm(len(inputs), device=inputs.device)

    def _soft_targets(self, own: torch.Tensor, partner: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        targets = torch.zeros(len(own), self._num_classes, device=own.device)
        targets.scatter_add_(1, own.unsqueeze(1), weights.unsqueeze(1))
        return targets.scatter_add_(1, partner.unsqueeze(1), 1 - weights.unsqueeze(1))


def flip_and_translate(images: torch.Tensor, flips: torch.Tensor, shifts: torch.Tensor, limit: int) -> torch.Tensor:
    """Mirror images left to right, then shift them; pixels from outside are 0.

    Args:
        images: (B, C, H, W).
        flips: (B,) bool, which images to mirror.
        shifts: (B, 2) int64, pixels down and to the right, in -limit..limit.
        limit: largest shift, in pixels.

    Returns:
        (B, C, H, W), of the images' type.
    """
    count, channels, height, width = images.shape
    rows = torch.arange(height, device=images.device) - shifts[:, :1] + limit
    columns = torch.arange(width, device=images.device) - shifts[:, 1:]
    columns = torch.where(flips.unsqueeze(1), width - 1 - columns, columns) + limit
    padded = F.pad(images, (limit,) * 4).flatten(2)
    source = (rows.unsqueeze(2) * (width + 2 * limit) + columns.unsqueeze(1)).view(count, 1, -1)
    return padded.gather(2, source.expand(-1, channels, -1)).view(images.shape)


def rectangles(
    tops: torch.Tensor, lefts: torch.Tensor, heights: torch.Tensor, widths: torch.Tensor, size: tuple[int, int]
) -> torch.Tensor:
    """Pixels (B, 1, H, W) bool inside a rectangle for each image, of which parts may be outside the image.

    Args:
        tops: (B,), first row.
        lefts: (B,), first column.
        heights: (B,), in pixels.
        widths: (B,), in pixels.
        size: H and W.
    """
    rows, columns = (torch.arange(side, device=tops.device) for side in size)
    in_rows = (rows >= tops.unsqueeze(1)) & (rows < (tops + heights).unsqueeze(1))
    in_columns = (columns >= lefts.unsqueeze(1)) & (columns < (lefts + widths).unsqueeze(1))
    return (in_rows.unsqueeze(2) & in_columns.unsqueeze(1)).unsqueeze(1)


@lru_cache(maxsize=16)
def _channel_constants(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Factor and summand (1, C, 1, 1) that normalize 0..255; kept, because copying them to a GPU makes it wait."""
    # Evaluation may come first, and a cached inference tensor would be of no use to training.
    with torch.inference_mode(False):
        means, stds = (torch.tensor(values, device=device).view(1, -1, 1, 1) for values in (mean, std))
        return 1 / (255 * stds), -means / stds
