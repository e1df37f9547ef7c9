"""What Pillow opened, of whatever kind, as upright 8-bit RGB.

Pillow's own `convert("RGB")` clips deep images at 255 and drops transparency: X-rays become white, and icons blank.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps

DEEPEST = 65_535
"""The largest value of 16 bits."""


def is_deep(image: Image.Image) -> bool:
    """Whether an opened image has whole numbers of more than 8 bits."""
    return image.mode.startswith("I")


def largest(image: Image.Image) -> int:
    """The largest value of an opened deep image.

    Raises:
        ValueError: It has values beyond 16 bits.
        Exception: Whatever Pillow raises on damaged files.
    """
    values = np.asarray(image)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > DEEPEST:
        raise ValueError(f"whole numbers of mode {image.mode} must lie in 0..{DEEPEST}, but are in {low}..{high}")
    return high


def to_rgb(image: Image.Image, *, background: str = "white", white: int = DEEPEST) -> Image.Image:
    """The first frame of an opened image in mode RGB, turned as its EXIF orientation says.

    Colour profiles are not applied.

    Args:
        image: Of any mode.
        background: The color that transparent images are put on.
        white: The value of deep images that becomes 255, and those above it too; floats are scaled from 0..1.

    Raises:
        ValueError: Its values have no range that is known.
        Exception: Whatever Pillow raises on damaged files and on modes that it cannot convert.
    """
    image.load()
    image = ImageOps.exif_transpose(image)
    if is_deep(image):
        largest(image)
        return _gray(np.asarray(image).astype(np.float64) / white)
    if image.mode == "F":
        values = np.asarray(image)
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
            raise ValueError(f"floats must lie in 0..1, but are in {values.min()}..{values.max()}")
        return _gray(values)
    if image.mode == "La":  # premultiplied; Pillow takes this way only
        image = image.convert("LA")
    if image.has_transparency_data:
        drawing = image.convert("RGBA")
        ground = Image.new("RGBA", drawing.size, background)
        ground.alpha_composite(drawing)
        return ground.convert("RGB")
    return image.convert("RGB")


def _gray(brightness: np.ndarray) -> Image.Image:
    return Image.fromarray(np.round(255 * brightness.clip(0, 1)).astype(np.uint8)).convert("RGB")
