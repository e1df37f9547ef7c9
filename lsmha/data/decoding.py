"""Encoded images (JPEG, PNG, ...) to one uint8 tensor."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from lsmha.errors import DataError
from lsmha.progress import OnProgress

DEFAULT_SIZE = 224
"""Side in pixels to which images of different sizes are resized."""
REPORT_EVERY = 1000
"""Images between two progress reports."""

Records = Callable[[], Iterable[tuple[str, "bytes | Path | None"]]]
"""Starts an iteration over (where the image comes from, its encoded bytes or file)."""


class _SizesDifferError(Exception):
    """The images have no common square size."""


def decode_images(
    records: Records, count: int, *, img_size: int | None, description: str, on_progress: OnProgress
) -> torch.Tensor:
    """Decode images as RGB.

    Args:
        records: starts an iteration over the `count` encoded images; started anew where a common size is assumed and
            then proves wrong.
        count: number of images, at least 1.
        img_size: side in pixels to resize to (antialiased bicubic, aspect ratio not kept); None keeps the size that
            all images have, or takes 224 where there is no such square size.
        description: passed on to `on_progress`.
        on_progress: called about every 1000 images.

    Returns:
        (count, 3, S, S) uint8.

    Raises:
        DataError: an image is missing or cannot be decoded.
    """

    def reported() -> Iterator[tuple[str, bytes | Path | None]]:
        for done, record in enumerate(records(), 1):
            yield record
            if done % REPORT_EVERY == 0 or done == count:
                on_progress(description, done, count)

    try:
        return _decode_all(reported(), count, img_size)
    except _SizesDifferError:
        return _decode_all(reported(), count, DEFAULT_SIZE)


def resize_images(images: torch.Tensor, img_size: int | None) -> torch.Tensor:
    """Resize decoded images (n, C, H, W) uint8 to `img_size` (antialiased bicubic); None leaves them as they are."""
    if img_size is None or images.shape[-2:] == (img_size, img_size):
        return images
    size = (img_size, img_size)
    # In chunks, because the interpolation's own copies of a chunk are several times as large as its result.
    return torch.cat([F.interpolate(chunk, size, mode="bicubic", antialias=True) for chunk in images.split(1024)])


def _decode_all(records: Iterable[tuple[str, bytes | Path | None]], count: int, img_size: int | None) -> torch.Tensor:
    images = None
    for index, (where, encoded) in enumerate(records):
        image = _decode(where, encoded)
        if images is None:
            size = img_size or image.width
            images = np.empty((count, 3, size, size), dtype=np.uint8)
        if image.size != (size, size):
            if img_size is None:
                raise _SizesDifferError
            image = image.resize((size, size), Image.Resampling.BICUBIC)
        images[index] = np.asarray(image).transpose(2, 0, 1)
    return torch.from_numpy(images)


def _decode(where: str, encoded: bytes | Path | None) -> Image.Image:
    if encoded is None:
        raise DataError(f"data.path: no image in {where}; every row needs one")
    try:
        with Image.open(io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded) as image:
            return image.convert("RGB")
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged bytes
        reason = " ".join(str(error).split())
        raise DataError(f"data.path: cannot decode the image in {where}: {reason}") from error
