"""Encoded images (JPEG, PNG, ...) to one uint8 tensor."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch.nn import functional as F

from lsmha.config import DataConfig
from lsmha.data.images import LabeledImages
from lsmha.data.reading.pixels import DEEPEST, is_deep, largest, to_rgb
from lsmha.device_memory import free_memory
from lsmha.errors import DataError
from lsmha.progress import OnProgress

DEFAULT_SIZE = 224
"""Side in pixels to which images of different sizes are resized."""
REPORT_EVERY = 1000
"""Images between two progress reports."""

Record = tuple[str, "bytes | Path | None"]
"""Where an image comes from, and its encoded bytes or file."""
Records = Callable[[], Iterable[Record]]
"""Starts an iteration over all images."""


@dataclass(frozen=True)
class Rendering:
    """How encoded images become pixels that are alike; None is for what the images themselves are to say."""

    size: int | None
    """Side in pixels to resize to (antialiased bicubic, aspect ratio not kept). None keeps the size that all images
    have, or takes 224 where there is no such square size."""
    background: str = "white"
    """What transparent images are put on."""
    white: int | None = None
    """The value of images of more than 8 bits that becomes 255. None takes the largest of as many bits as are used."""


Encoded = tuple[Records, torch.Tensor]
"""The images of a split, and their labels, (n,)."""


class _SizesDifferError(Exception):
    """The images have no common square size."""


class _DeepError(Exception):
    """There is an image of more than 8 bits, and it is not known how many of them are used."""


def decode_splits(
    train: Encoded, test: Encoded, config: DataConfig, on_progress: OnProgress
) -> tuple[LabeledImages, LabeledImages]:
    """Decode both splits; what the settings leave open follows the training images for the test images, too.

    Raises:
        DataError: As `decode_images` does.
    """
    rendering, decoded = Rendering(config.img_size, config.background), []
    for split, (records, labels) in {"train": train, "test": test}.items():
        description = f"decoding {split} images"
        images, rendering = decode_images(
            records, len(labels), rendering, description=description, on_progress=on_progress
        )
        decoded.append(LabeledImages(images, labels))
    return decoded[0], decoded[1]


def decode_images(
    records: Records, count: int, rendering: Rendering, *, description: str, on_progress: OnProgress
) -> tuple[torch.Tensor, Rendering]:
    """Decode images as RGB, as `to_rgb` does.

    Args:
        records: starts an iteration over the `count` encoded images; started anew where something was assumed of all
            of them that then proves wrong.
        count: number of images, at least 1.
        rendering: what they are to look like.
        description: passed on to `on_progress`.
        on_progress: called about every 1000 images.

    Returns:
        (count, 3, S, S) uint8, and how they were rendered, for other images that are to be like them.

    Raises:
        DataError: an image is missing or cannot be decoded, there are more or fewer than `count`, or all of them do not
            fit into memory.
    """

    def counted() -> Iterator[Record]:
        return _counted(records(), count)

    def reported() -> Iterator[Record]:
        for done, record in enumerate(counted(), 1):
            yield record
            if done % REPORT_EVERY == 0 or done == count:
                on_progress(description, done, count)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, on odd files that it reads all the same
        found = replace(rendering, size=rendering.size or _common_size(counted()))
        while True:
            try:
                resize = rendering.size is not None or found.size == DEFAULT_SIZE
                return _decode_all(reported(), count, found, resize=resize), found
            except _SizesDifferError:
                found = replace(found, size=DEFAULT_SIZE)
            except _DeepError:
                found = replace(found, white=_white(counted()))


def resize_images(images: torch.Tensor, img_size: int | None) -> torch.Tensor:
    """Resize decoded images (n, C, H, W) uint8 to `img_size` (antialiased bicubic); None leaves them as they are."""
    if img_size is None or images.shape[-2:] == (img_size, img_size):
        return images
    size = (img_size, img_size)
    # In chunks, because the interpolation's own copies of a chunk are several times as large as its result.
    return torch.cat([F.interpolate(chunk, size, mode="bicubic", antialias=True) for chunk in images.split(1024)])


def _counted(records: Iterable[Record], count: int) -> Iterator[Record]:
    """The records, of which a damaged file may have more or fewer than it has labels."""
    done, where = 0, "the first file"
    for done, (where, encoded) in enumerate(records, 1):
        if done > count:
            raise DataError(f"data.path: {where} is one image more than labels ({count:,}); a file is damaged")
        yield where, encoded
    if done < count:
        raise DataError(f"data.path: there are {count:,} labels, but {done:,} images up to {where}; a file is damaged")


def _common_size(records: Iterable[Record]) -> int:
    """The side of square images, by what their files say of themselves; 224 where they have no common one.

    Small images are taken at the first one's word, as little is lost where it is wrong.
    """
    sizes: set[tuple[int, int]] = set()
    for where, encoded in records:
        with _opened(where, encoded) as image:
            sizes.add(image.size)
        width, height = image.size
        if len(sizes) > 1 or width != height:
            return DEFAULT_SIZE
        if width <= DEFAULT_SIZE:
            break
    return width


def _white(records: Iterable[Record]) -> int:
    """The largest value of as many bits as the deep images use, 8 at least."""
    deepest = 0
    for where, encoded in records:
        with _opened(where, encoded) as image:
            if is_deep(image):
                deepest = max(deepest, largest(image))
    return int(2 ** max(8, deepest.bit_length())) - 1


def _decode_all(records: Iterable[Record], count: int, rendering: Rendering, *, resize: bool) -> torch.Tensor:
    assert rendering.size is not None
    size = (rendering.size, rendering.size)
    images = _allocated(count, rendering.size)
    for index, (where, encoded) in enumerate(records):
        with _opened(where, encoded) as opened:
            if rendering.white is None and is_deep(opened):
                raise _DeepError
            image = to_rgb(opened, background=rendering.background, white=rendering.white or DEEPEST)
        if image.size != size:
            if not resize:
                raise _SizesDifferError
            image = image.resize(size, Image.Resampling.BICUBIC)
        images[index] = np.asarray(image).transpose(2, 0, 1)
    return torch.from_numpy(images)


def _allocated(count: int, size: int) -> np.ndarray:
    needed, free = count * 3 * size**2, free_memory(torch.device("cpu"))
    if needed > free:
        raise DataError(
            f"data.img_size must be smaller: {count:,} images of {size} x {size} pixels take {needed / 2**30:,.1f} "
            f"GiB, and {free / 2**30:,.1f} GiB of memory are free"
        )
    return np.empty((count, 3, size, size), dtype=np.uint8)


@contextmanager
def _opened(where: str, encoded: bytes | Path | None) -> Iterator[Image.Image]:
    if encoded is None:
        raise DataError(f"data.path: no image in {where}; every row needs one")
    try:
        with Image.open(io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded) as image:
            yield image
    except _DeepError:
        raise
    except UnidentifiedImageError:
        raise DataError(f"data.path: cannot decode the image in {where}: of no kind that Pillow knows") from None
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged bytes
        reason = " ".join(str(error).split())
        raise DataError(f"data.path: cannot decode the image in {where}: {reason}") from error
