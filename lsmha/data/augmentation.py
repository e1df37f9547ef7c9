"""Batched augmentation on the training device, with parameters drawn for each image apart.

kornia serves for erasing and cutmix, because torchvision's transforms draw one set of parameters for a whole batch.
Flip and translate are one gather of uint8 pixels, several times as fast as kornia's; RandAugment is our own.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch.nn import functional as F

from lsmha.config import AugmentConfig


def normalise(images: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
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


class Augmentation:
    """Random changes to training batches, in this order: flip and translate, RandAugment, normalisation, random erasing
    (to the mean of the training pixels), mixup or cutmix.

    Every draw comes from torch's global generators, so that `torch.manual_seed` makes a batch repeat bit by bit.
    Flip, translate and mixup are drawn on the images' device and never wait for it; RandAugment and kornia's erasing
    and cutmix are drawn on the host.
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
        # Imported here, so that a run without these operations does not load torchvision and kornia.
        if config.randaugment_ops:
            from lsmha.data.randaugment import RandAugment

            self._randaugment = RandAugment(config.randaugment_ops, config.randaugment_magnitude)
        if config.random_erasing:
            from kornia.augmentation import RandomErasing

            self._erase = RandomErasing(p=config.random_erasing)
        if config.cutmix_alpha:
            from kornia.augmentation import RandomCutMixV2

            self._cutmix = RandomCutMixV2(
                beta=config.cutmix_alpha, data_keys=["input", "class"], use_correct_lambda=True
            )

    @torch.no_grad()
    def __call__(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Augment and normalise one batch.

        Args:
            images: (B, C, H, W) uint8; not changed.
            labels: (B,) int64, on the same device.

        Returns:
            Images (B, C, H, W) float32, and targets: `labels` itself, or with mixup or cutmix the probabilities of
            the labels, (B, K) float32.
        """
        config = self._config
        if config.flip or config.translate:
            images = flip_and_translate(images, *self._draw_geometry(images))
        if config.randaugment_ops:
            images = self._randaugment(images)
        inputs = normalise(images, self._mean, self._std)
        if config.random_erasing:
            inputs = self._erase(inputs)
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

    def _mix_up(self, inputs: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        # Not kornia's mixup: it draws uniform weights, not beta-distributed ones.
        alpha = torch.full((len(inputs),), self._config.mixup_alpha, device=inputs.device)
        weights = torch.distributions.Beta(alpha, alpha, validate_args=False).sample()
        partners = torch.randperm(len(inputs), device=inputs.device)
        mixed = torch.lerp(inputs[partners], inputs, weights.view(-1, 1, 1, 1))
        return mixed, self._soft_targets(labels, labels[partners], weights)

    def _cut_mix(self, inputs: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mixed, triples = self._cutmix(inputs, labels)
        own, partner, weights = triples[0].unbind(1)
        return mixed, self._soft_targets(own.long(), partner.long(), weights)

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


@lru_cache(maxsize=16)
def _channel_constants(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Factor and summand (1, C, 1, 1) that normalise 0..255; kept, because copying them to a GPU makes it wait."""
    # Evaluation may come first, and a cached inference tensor would be of no use to training.
    with torch.inference_mode(False):
        means, stds = (torch.tensor(values, device=device).view(1, -1, 1, 1) for values in (mean, std))
        return 1 / (255 * stds), -means / stds
