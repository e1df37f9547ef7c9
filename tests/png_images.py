"""Small images as PNG files, told apart by their levels."""

from __future__ import annotations

import io

from PIL import Image


def png(level: int, size: tuple[int, int] = (8, 8), mode: str = "RGB", mark: int = 0) -> bytes:
    """Of one color but for a corner, in which images can differ."""
    buffer = io.BytesIO()
    image = Image.new(mode, size, level if mode == "L" else (level, 0, 255))
    if mode == "RGB":
        image.putpixel((size[0] - 1, size[1] - 1), (level, mark, 255))
    image.save(buffer, "png")
    return buffer.getvalue()
