"""Images of every kind that Pillow writes, as 8-bit RGB."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lsmha.data.reading.decoding import Rendering, decode_images
from lsmha.data.reading.pixels import to_rgb
from lsmha.errors import DataError
from lsmha.progress import no_progress

AS_THEY_ARE = Rendering(None)


def encoded(image: Image.Image, kind: str = "png", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def render(contents: list[bytes], rendering: Rendering = AS_THEY_ARE) -> tuple[torch.Tensor, Rendering]:
    records = [("here", content) for content in contents]
    return decode_images(lambda: records, len(records), rendering, description="", on_progress=no_progress)


def decoded(content: bytes, **rendering: Any) -> np.ndarray:
    """(S, S, 3) uint8, as training gets it."""
    images, _ = render([content], replace(AS_THEY_ARE, **rendering))
    return images[0].permute(1, 2, 0).numpy()


def ramp(dtype: type, largest: float, size: int = 16) -> np.ndarray:
    return np.linspace(0, largest, size * size).reshape(size, size).astype(dtype)


@given(
    mode=st.sampled_from(["1", "L", "P", "RGB", "CMYK", "YCbCr"]),
    kind=st.sampled_from(["png", "jpeg", "bmp", "tiff", "gif", "webp", "ppm"]),
    size=st.integers(1, 20),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=150, deadline=None)
def test_plain_images_are_what_pillow_shows(mode: str, kind: str, size: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    try:
        content = encoded(image, kind)
        with Image.open(io.BytesIO(content)) as shown:
            expected = np.asarray(shown.convert("RGB"))
    except (
        OSError,
        KeyError,
        ValueError,
    ):  # not every format holds every mode, or can be read again
        return
    assert np.array_equal(decoded(content), expected)


@given(
    size=st.integers(1, 20),
    kind=st.sampled_from(["png", "tiff"]),
    order=st.sampled_from(["<u2", ">u2"]),
    bits=st.integers(1, 16),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=80, deadline=None)
def test_deep_images_are_scaled_by_the_bits_that_they_use(
    size: int, kind: str, order: str, bits: int, seed: int
) -> None:
    values = np.random.default_rng(seed).integers(0, 2**bits, (size, size), dtype=np.uint16)
    values[0, 0] = 2**bits - 1
    if order == ">u2" and kind == "tiff":
        image = Image.frombytes("I;16B", (size, size), values.astype(order).tobytes())
    else:
        image = Image.fromarray(values)
    found = decoded(encoded(image, kind))
    assert np.abs(found - 255 * values[..., None].astype(float) / (2 ** max(bits, 8) - 1)).max() <= 0.5
    assert (found[..., 0] == found[..., 1]).all()


def test_the_bits_are_those_of_all_images_and_then_of_the_test_images_too() -> None:
    dark, light = (encoded(Image.fromarray(np.full((4, 4), level, dtype=np.uint16))) for level in (400, 4000))
    images, rendering = render([dark, encoded(Image.new("RGB", (4, 4), "red")), light])
    assert rendering.white == 4095
    assert images[[0, 2], 0, 0, 0].tolist() == [25, 249]
    assert images[1, :, 0, 0].tolist() == [255, 0, 0]
    assert render([dark], rendering)[0][0, 0, 0, 0] == 25
    lighter = encoded(Image.fromarray(np.full((4, 4), 60_000, dtype=np.uint16)))
    assert render([lighter], rendering)[0][0, 0, 0, 0] == 255


@pytest.mark.parametrize(("low", "high", "white"), [(0, 65_535, 65_535), (0, 255, 255), (100, 4_000, 4_095)])
def test_whole_numbers_of_32_bits_are_taken_for_16(low: int, high: int, white: int) -> None:
    values = np.linspace(low, high, 256).reshape(16, 16).astype(np.int32)
    assert np.abs(decoded(encoded(Image.fromarray(values), "tiff"))[..., 0] - 255 * values / white).max() <= 0.5


def test_floats_are_scaled_from_one() -> None:
    values = ramp(np.float32, 1.0)
    assert np.abs(decoded(encoded(Image.fromarray(values), "tiff"))[..., 0] - 255 * values).max() <= 0.5


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (ramp(np.float32, 300.0), r"floats must lie in 0\.\.1, but are in 0\.0\.\.300\.0"),
        (ramp(np.float32, 1.0) - 0.5, r"floats must lie in 0\.\.1"),
        (np.full((4, 4), np.nan, dtype=np.float32), "floats must lie"),
        (ramp(np.int32, 70_000), r"whole numbers of mode I must lie in 0\.\.65535, but are in 0\.\.70000"),
        (ramp(np.int32, 100) - 1, "whole numbers of mode I"),
    ],
)
def test_values_without_a_known_range_are_refused(values: np.ndarray, reason: str) -> None:
    with pytest.raises(DataError, match=rf"cannot decode the image in here: {reason}"):
        decoded(encoded(Image.fromarray(values), "tiff"))


@given(
    mode=st.sampled_from(["RGBA", "LA", "PA", "RGBa", "La"]),
    kind=st.sampled_from(["png", "tiff", "webp", "gif"]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=80, deadline=None)
def test_transparent_images_are_put_on_white(mode: str, kind: str, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 4), dtype=np.uint8)
    pixels[:4, :, 3] = 0
    pixels[4:, :, 3] = 255
    image = Image.fromarray(pixels)
    try:
        image = image.convert("LA").convert(mode) if mode in ("LA", "La") else image.convert(mode)
        content = encoded(image, kind)
    except (OSError, KeyError, ValueError):
        return
    with Image.open(io.BytesIO(content)) as shown:
        has_alpha = shown.has_transparency_data
        expected = np.asarray(shown.convert("RGB"))
    found = decoded(content)
    if has_alpha:
        assert (found[:4] == 255).all()
        if mode in ("RGBA", "LA") and kind == "png":
            assert np.array_equal(found[4:], expected[4:])


@pytest.mark.parametrize("mode", ["P", "L", "RGB"])
def test_a_transparent_color_is_put_on_white(mode: str) -> None:
    image = Image.new("RGB", (4, 4), (0, 0, 0))
    image.putpixel((1, 2), (200, 200, 200))
    image = image.convert(mode)
    gone = {"P": image.getpixel((0, 0)), "L": 0, "RGB": (0, 0, 0)}[mode]
    found = decoded(encoded(image, "png", transparency=gone))
    assert (found[0] == 255).all()
    assert abs(int(found[2, 1, 0]) - 200) < 8


def test_a_drawing_in_alpha_alone_is_seen() -> None:
    drawing = np.zeros((8, 8, 4), dtype=np.uint8)
    drawing[2:6, 2:6, 3] = 255
    found = decoded(encoded(Image.fromarray(drawing)))
    assert (found[2:6, 2:6] == 0).all()
    assert found.mean() > 128
    drawing[..., :3] = 255
    assert (decoded(encoded(Image.fromarray(drawing))) == 255).all()
    on_black = decoded(encoded(Image.fromarray(drawing)), background="black")
    assert (on_black[2:6, 2:6] == 255).all()
    assert on_black.mean() < 128


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "tiff"])
def test_images_are_upright(orientation: int, kind: str) -> None:
    """As those who show them do, and the hub's `datasets` does."""
    upright = np.zeros((16, 16, 3), dtype=np.uint8)
    upright[:8, :8] = 255  # top left
    upright[:8, 8:] = 128
    turns = [lambda a: a, np.fliplr, lambda a: np.rot90(a, 2), np.flipud, lambda a: a.transpose(1, 0, 2), np.rot90]
    turns += [lambda a: np.rot90(a, 2).transpose(1, 0, 2), lambda a: np.rot90(a, 3)]
    stored = Image.fromarray(np.ascontiguousarray(turns[orientation - 1](upright)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = decoded(encoded(stored, kind, exif=exif))
    assert np.abs(found.astype(int) - upright).mean() < 6


def test_of_an_animation_the_first_frame_is_taken() -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "green", "blue")]
    for kind in ("gif", "png", "webp", "tiff"):
        options = {"lossless": True} if kind == "webp" else {}
        content = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert np.abs(decoded(content)[0, 0].astype(int) - (255, 0, 0)).max() <= 2


def test_colors_of_cie_lab_are_those_of_rgb() -> None:
    content = encoded(Image.new("LAB", (4, 4), (255, 128, 128)), "tiff")
    assert (decoded(content) >= 250).all()


def test_an_image_is_left_as_it_was() -> None:
    image = Image.new("RGBA", (4, 4))
    to_rgb(image)
    assert image.mode == "RGBA"


@pytest.mark.parametrize("side", [8, 300])
def test_sizes_that_differ_make_224(side: int) -> None:
    contents = [encoded(Image.new("RGB", size)) for size in ((side, side), (side, side), (side + 1, side + 1))]
    images, rendering = render(contents)
    assert images.shape == (3, 3, 224, 224)
    assert rendering.size == 224
    assert render(contents[:2])[0].shape == (2, 3, side, side)


def test_what_does_not_fit_into_memory_is_refused_before_it_is_decoded() -> None:
    opened = 0

    def records() -> Iterator[tuple[str, bytes]]:
        nonlocal opened
        for _ in range(10):
            opened += 1
            yield "", b"never looked at"

    with pytest.raises(DataError, match=r"data\.img_size must be smaller: 10 images of 400000 x 400000 pixels take"):
        decode_images(records, 10, Rendering(400_000), description="", on_progress=no_progress)
    assert opened == 0


@pytest.mark.parametrize(
    ("size", "labels", "message"),
    [
        (None, 0, r"image 0 is one image more than labels \(0\)"),
        (None, 2, r"image 2 is one image more than labels \(2\)"),
        (8, 2, r"image 2 is one image more than labels \(2\)"),
        (None, 4, r"there are 4 labels, but 3 images up to image 2"),
        (8, 4, r"there are 4 labels, but 3 images up to image 2"),
    ],
)
def test_as_many_images_as_labels_are_read(size: int | None, labels: int, message: str) -> None:
    """What is left of a file may have more rows in one column than in another; nothing stays undecoded in silence."""
    records = [(f"image {number}", encoded(Image.new("RGB", (8, 8)))) for number in range(3)]
    with pytest.raises(DataError, match=rf"data\.path: {message}.*; a file is damaged"):
        decode_images(lambda: records, labels, Rendering(size), description="", on_progress=no_progress)


def test_no_images_for_some_labels_are_refused() -> None:
    with pytest.raises(DataError, match="there are 2 labels, but 0 images"):
        decode_images(list, 2, Rendering(None), description="", on_progress=no_progress)


def test_a_decompression_bomb_is_refused() -> None:
    content = encoded(Image.new("1", (20_000, 20_000)))
    with pytest.raises(DataError, match=r"cannot decode the image in here: .*exceeds limit"):
        decoded(content, size=8)
