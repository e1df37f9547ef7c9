"""RandAugment (Cubuk et al., arXiv:1909.13719) with the operations drawn for each image apart.

kornia's own RandAugment applies one sequence of operations to a whole batch, and maps its magnitude linearly onto
each operation's range, so that colour, contrast, brightness, sharpness and solarise are strongest at magnitude 0. Here
kornia's operations get magnitudes that grow from no change at 0 to the end of kornia's range at 30.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from kornia.augmentation.auto.operations import OperationBase
from kornia.augmentation.auto.rand_augment import ops

MAX_MAGNITUDE = 30

Magnitudes = Callable[[float, int, int], "torch.Tensor | float | None"]
"""(strength in [0, 1], images b, side S) to a magnitude for each image (b,), one for all, or None without any."""


def _enhance(strength: float, count: int, side: int) -> torch.Tensor:
    """Factors (count,) above or below 1, which leaves an image as it is."""
    return 1 + 0.9 * strength * (2.0 * torch.randint(2, (count,)) - 1)


# kornia's operations with its ranges, which only matter where the last entry depends on them: geometric operations
# add a random sign to their magnitude themselves; posterise truncates to a number of bits.
_OPERATIONS: dict[str, tuple[float, float, Magnitudes]] = {
    "auto_contrast": (0, 1, lambda strength, count, side: None),
    "equalize": (0, 1, lambda strength, count, side: None),
    "invert": (0, 1, lambda strength, count, side: None),
    "rotate": (-30, 30, lambda strength, count, side: 30 * strength),
    "posterize": (4, 8, lambda strength, count, side: 8 - 4 * strength),
    "solarize": (0, 1, lambda strength, count, side: 1 - strength),
    "solarize_add": (0, 0.43, lambda strength, count, side: 0.43 * strength),
    "contrast": (0.1, 1.9, _enhance),
    "brightness": (0.1, 1.9, _enhance),
    "sharpness": (0.1, 1.9, _enhance),
    "shear_x": (-0.3, 0.3, lambda strength, count, side: 0.3 * strength),
    "shear_y": (-0.3, 0.3, lambda strength, count, side: 0.3 * strength),
    "translate_x": (-0.1, 0.1, lambda strength, count, side: 0.1 * strength * side),
    "translate_y": (-0.1, 0.1, lambda strength, count, side: 0.1 * strength * side),
    "color": (0.1, 1.9, _enhance),
}


class RandAugment:
    """Applies `num_ops` operations in turn to each image, each drawn uniformly and with replacement.

    All draws come from torch's global CPU generator: the host has to know which operations to launch, and kornia draws
    its parameters there, so a batch depends on the seed but not on the device.
    """

    def __init__(self, num_ops: int, magnitude: int) -> None:
        self._num_ops = num_ops
        self._strength = magnitude / MAX_MAGNITUDE
        self._ops: dict[str, OperationBase] = {
            name: getattr(ops, name)(low, high) for name, (low, high, _) in _OPERATIONS.items()
        }

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Augment images (B, C, H, W) uint8, in 0..255; those with other than 3 channels without `color`."""
        names = [name for name in self._ops if name != "color" or images.shape[1] == 3]
        pixels = images.float() / 255
        for _ in range(self._num_ops):
            drawn = torch.randint(len(names), (len(images),))
            for operation in drawn.unique().tolist():
                chosen = (drawn == operation).nonzero().squeeze(1).to(images.device, non_blocking=True)
                pixels[chosen] = self._apply(names[operation], pixels[chosen])
        return (pixels * 255).round().clamp(0, 255).to(torch.uint8)

    def _apply(self, name: str, pixels: torch.Tensor) -> torch.Tensor:
        magnitude = _OPERATIONS[name][2](self._strength, len(pixels), pixels.shape[-1])
        if isinstance(magnitude, float):
            magnitude = torch.full((len(pixels),), magnitude)
        operation = self._ops[name]
        return operation(pixels, operation.forward_parameters(pixels.shape, mag=magnitude))
