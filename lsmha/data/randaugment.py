"""RandAugment (Cubuk et al., arXiv:1909.13719) with the operation and its sign drawn for each image apart.

The paper's 14 operations, with the ranges of torchvision's RandAugment (bilinear), which draws once for a whole batch.
Called for one image after another it takes as long as a small network's training step, so here all images that turn,
shear or move do so in one call, and so do those of each other operation.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as tv

from lsmha.shapes import Int, UInt8

MAX_MAGNITUDE = 30


def _black(images: Tensor) -> Tensor:
    return images.new_zeros(1)


def _gray(images: Tensor) -> Tensor:
    if images.shape[1] == 3:
        return tv.rgb_to_grayscale(images)
    return images.float().mean(1, keepdim=True)


def _mean_gray(images: Tensor) -> Tensor:
    return _gray(images).float().mean((1, 2, 3), keepdim=True)


def _blurred(images: Tensor) -> Tensor:
    """Means over 3x3 pixels of which the one in the middle counts 5 times; the border stays as it is."""
    blurred = images.float()
    rows = blurred[..., :-2, :] + blurred[..., 1:-1, :] + blurred[..., 2:, :]
    middle = blurred[..., 1:-1, 1:-1]
    middle.copy_(((rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * middle) / 13).round_())
    return blurred


# A matrix takes a pixel's place in the new image to that in the old one, (x, y) in [-1, 1]; shears keep the upper left
# corner where it is.
_MOVES: dict[str, Callable[[float, int], list[float]]] = {
    "rotate": lambda strength, side: _rotation(math.radians(30 * strength)),
    "shear_x": lambda strength, side: [1, 0.3 * strength, 0.3 * strength, 0, 1, 0],
    "shear_y": lambda strength, side: [1, 0, 0, 0.3 * strength, 1, 0.3 * strength],
    "translate_x": lambda strength, side: [1, 0, -2 * _shift(strength, side) / side, 0, 1, 0],
    "translate_y": lambda strength, side: [1, 0, 0, 0, 1, -2 * _shift(strength, side) / side],
}
# What an image becomes at a factor of 0; it stays as it is at 1.
_BLENDS: dict[str, Callable[[Tensor], Tensor]] = {
    "brightness": _black,
    "color": _gray,
    "contrast": _mean_gray,
    "sharpness": _blurred,
}
_REST: dict[str, Callable[[Tensor, float], Tensor]] = {
    "identity": lambda images, strength: images,
    "posterize": lambda images, strength: tv.posterize(images, bits=8 - round(4 * strength)),
    # As torchvision's, in a fifth of the time: torch's choice between bytes is not vectorized.
    "solarize": lambda images, strength: images ^ (255 * (images >= 255 * (1 - strength)).to(torch.uint8)),
    # Each channel is an image to torchvision, which takes 1 or 3 of them only.
    "auto_contrast": lambda images, strength: tv.autocontrast(images.flatten(0, 1).unsqueeze(1)).view_as(images),
    "equalize": lambda images, strength: tv.equalize(images),
}
OPERATIONS = (*_MOVES, *_BLENDS, *_REST)


class RandAugment:
    """Applies `num_ops` operations in turn to each image, each drawn uniformly and with replacement.

    All draws come from torch's global CPU generator, because the host has to know how many images each operation gets.
    A batch depends on the seed, not on the device, which is never waited for.
    """

    def __init__(self, num_ops: int, magnitude: int) -> None:
        """
        Args:
            num_ops: operations on each image.
            magnitude: their strength, from 0 to `MAX_MAGNITUDE`.
        """
        self._num_ops = num_ops
        self._strength = magnitude / MAX_MAGNITUDE

    def __call__(self, images: UInt8[Tensor, "B C S S"]) -> UInt8[Tensor, "B C S S"]:
        """Augment square images."""
        for _ in range(self._num_ops):
            operations = torch.randint(len(OPERATIONS), (len(images),))
            signs = 2 * torch.randint(2, (len(images),)) - 1
            images = self.apply(images, operations, signs)
        return images

    def apply(
        self, images: UInt8[Tensor, "B C S S"], operations: Int[Tensor, " B"], signs: Int[Tensor, " B"]
    ) -> UInt8[Tensor, "B C S S"]:
        """Apply one operation to each image.

        Args:
            images: Not changed.
            operations: On the CPU, places in `OPERATIONS`.
            signs: On the CPU, each 1 or -1: which way to turn, shear or move, more or less of the others.
        """
        order = operations.argsort(stable=True)
        counts = operations.bincount(minlength=len(OPERATIONS)).tolist()
        counts = [sum(counts[: len(_MOVES)]), *counts[len(_MOVES) :]]
        groups = zip(
            ("move", *_BLENDS, *_REST),
            images.index_select(0, _sent(order, images.device)).split(counts),
            operations[order].split(counts),
            signs[order].split(counts),
            strict=True,
        )
        changed = [self._change(*group) for group, count in zip(groups, counts, strict=True) if count]
        return torch.cat(changed).index_select(0, _sent(order.argsort(), images.device))

    def _change(
        self, name: str, images: UInt8[Tensor, "n C S S"], operations: Int[Tensor, " n"], signs: Int[Tensor, " n"]
    ) -> UInt8[Tensor, "n C S S"]:
        if name in _REST:
            return _REST[name](images, self._strength)
        if name in _BLENDS:
            return self._blend(images, _BLENDS[name](images), signs)
        return self._move(images, operations, signs)

    def _move(
        self, images: UInt8[Tensor, "n C S S"], operations: Int[Tensor, " n"], signs: Int[Tensor, " n"]
    ) -> UInt8[Tensor, "n C S S"]:
        side = images.shape[-1]
        known = [[matrix(sign * self._strength, side) for sign in (-1, 1)] for matrix in _MOVES.values()]
        matrices = torch.tensor(known)[operations, (signs + 1) // 2]
        a, b, c, d, e, f = _sent(matrices, images.device).view(-1, 6, 1, 1).unbind(1)
        x = (2 * torch.arange(side, device=images.device) + 1) / side - 1
        y = x.unsqueeze(1)
        places = torch.stack([a * x + b * y + c, d * x + e * y + f], dim=-1)
        return F.grid_sample(images.float(), places, align_corners=False).round_().to(torch.uint8)

    def _blend(
        self, images: UInt8[Tensor, "n C S S"], other: Tensor, signs: Int[Tensor, " n"]
    ) -> UInt8[Tensor, "n C S S"]:
        factors = _sent(1 + 0.9 * self._strength * signs, images.device).view(-1, 1, 1, 1)
        return (images * factors + other * (1 - factors)).round_().clamp_(0, 255).to(torch.uint8)


def _rotation(angle: float) -> list[float]:
    return [math.cos(angle), -math.sin(angle), 0.0, math.sin(angle), math.cos(angle), 0.0]


def _shift(strength: float, side: int) -> int:
    return int(150 / 331 * strength * side)


def _sent(values: Tensor, device: torch.device) -> Tensor:
    return values.to(device, non_blocking=True)
