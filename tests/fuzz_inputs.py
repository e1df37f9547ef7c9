"""Damaged and odd data sets and checkpoints, made at random: each is read, or refused in one line.

    python tests/fuzz_inputs.py --minutes 60 --seed 0

Each case has a number, from which all that is random in it follows. Cases run in worker processes, whose memory is
bounded, so that one that crashes or takes all memory is found, too.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import resource
import shutil
import sys
import tarfile
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from published_names import to_published_key
from pydantic import ValidationError
from safetensors.torch import save_file

from lsmha.config import DataConfig, ModelConfig
from lsmha.data import load_dataset
from lsmha.errors import ConfigurationError, DataError
from lsmha.models import CCT
from lsmha.training.saved import load_network

MODEL = ModelConfig(
    img_size=8, num_classes=3, embed_dim=8, depth=1, num_heads=2, kernel_size=3, num_tokenizer_convs=1,
    positional_embedding="none", in_channels=3,
)  # fmt: skip
KINDS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F", "YCbCr")
MEMORY = 12 * 2**30
"""Address space of a worker, in bytes; torch itself maps several GiB."""


def outcome(number: int) -> str:
    """What becomes of a case: `read`, or `refused`.

    Raises:
        AssertionError: The refusal is not one line.
        Exception: Anything else that came out, which is a fault.
    """
    rng = random.Random(number)
    with _folder() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        make, read = rng.choice(CASES)
        make(folder, rng)
        for _ in range(rng.choice((0, 0, 0, 1, 1, 2))):
            _damage(folder, rng)
        try:
            read(folder, rng)
        except ValidationError:  # of the head count, say; commands make one line of it
            return "refused"
        except (DataError, ConfigurationError) as refusal:
            text = str(refusal)
            assert text, "an empty refusal"
            assert "\n" not in text, f"several lines: {text!r}"
            assert "\x1b" not in text, f"terminal codes: {text!r}"
            text.encode("utf-8")
            return "refused"
        return "read"


# ---- data sets --------------------------------------------------------------------------------------------------


def _image(rng: random.Random) -> bytes:
    side = rng.choice((8, 8, 8, 1, 9, 16))
    size = (side, side) if rng.random() < 0.9 else (rng.randint(1, 12), rng.randint(1, 12))
    pixels = np.random.default_rng(rng.getrandbits(32)).integers(0, 256, (*size, 4), dtype=np.uint8)
    mode, kind = (rng.choice(MODES), rng.choice(KINDS)) if rng.random() < 0.1 else ("RGB", "PNG")
    buffer = io.BytesIO()
    try:
        image = Image.fromarray(pixels)
        (image.convert("L").convert(mode) if mode in ("I;16", "I", "F", "LA") else image.convert(mode)).save(
            buffer, kind
        )
    except (OSError, ValueError, KeyError):  # not every format holds every mode
        return _image(rng)
    return buffer.getvalue()


def _labels(rng: random.Random, count: int, kind: float) -> pa.Array:
    numbers = [index % 3 for index in range(count)]
    if kind < 0.75:
        return pa.array(numbers, rng.choice((pa.int64(), pa.int8(), pa.uint32(), pa.uint64())))
    if kind < 0.85:
        return pa.array([("ant", "bee", "cat")[n] for n in numbers])
    odd: list[list[Any]] = [
        [None] * count, [-1] * count, [float(n) for n in numbers], [n * 2**40 for n in numbers], [[n] for n in numbers],
        [b"x"] * count, [n == 1 for n in numbers], [{"a": n} for n in numbers], list(range(count)), [""] * count,
    ]  # fmt: skip
    return pa.array(rng.choice(odd))


def _parquet(folder: Path, rng: random.Random) -> None:
    kind = rng.random()
    for split, count in (("train", 24), ("test", 6)):
        images: list[Any] = [_image(rng) for _ in range(count)]
        if rng.random() < 0.1:
            images[rng.randrange(count)] = rng.choice((None, b"", b"no image", bytes(100)))
        column = pa.array(images, pa.binary())
        if rng.random() < 0.8:
            column = pa.StructArray.from_arrays([column, pa.nulls(count, pa.string())], ["bytes", "path"])
        table = pa.table({"image": column, "label": _labels(rng, count, kind)})
        if rng.random() < 0.3:
            names = rng.choice((["a", "b", "c"], ["a"], [], "abc", [1, None, 2], {"a": 1}, ["a"] * 1000))
            features = {"label": {"names": names}} if rng.random() < 0.8 else rng.choice(([], 3, None, "x"))
            metadata = json.dumps({"info": {"features": features}})
            table = table.replace_schema_metadata({"huggingface": metadata})
        name = rng.choice((f"{split}.parquet", f"{split}-00000-of-00001.parquet", f"x/{split}/0000.parquet"))
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, folder / name, row_group_size=rng.choice((4, 100)))


def _images(folder: Path, rng: random.Random) -> None:
    third = rng.choice(("cat", ".hidden", "__MACOSX", "c\udce4t"))
    for split, count in (("train", 6), ("test", 2)):
        for label in ("ant", "bee", third):
            (folder / split / label).mkdir(parents=True)
            for number in range(count):
                suffix = rng.choice(("png", "png", "PNG", "jpg", "txt", "gif"))
                (folder / split / label / f"{number}.{suffix}").write_bytes(_image(rng))


def _tars(folder: Path, rng: random.Random) -> None:
    for split, count in (("train", 24), ("test", 6)):
        with tarfile.open(folder / f"{split}-0000.tar", "w") as tar:
            for number in range(count):
                label = rng.choice((str(number % 3),) * 300 + ("", "-1", "x", "9" * 30, "\u00e4"))
                kind = rng.choice(("cls",) * 300 + ("json", "txt", "none"))
                for name, content in ((f"{number:04}.png", _image(rng)), (f"{number:04}.{kind}", label.encode())):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))


def _read(name: str) -> Callable[[Path, random.Random], None]:
    def read(folder: Path, rng: random.Random) -> None:
        load_dataset(DataConfig.model_validate({"name": name, "path": str(folder), "val_fraction": 0.2}))

    return read


# ---- checkpoints ------------------------------------------------------------------------------------------------


def _weights(folder: Path, rng: random.Random) -> None:
    weights: dict[str, Any] = {to_published_key(name): value for name, value in CCT(MODEL).state_dict().items()}
    prefix = rng.choice(("", "", "module.", "_orig_mod.model."))
    weights = {prefix + name: value for name, value in weights.items()}
    for _ in range(rng.choice((0, 0, 0, 1, 2))):
        name = rng.choice([name for name, value in weights.items() if isinstance(value, torch.Tensor)])
        value = weights.pop(name).to_dense()
        odd: list[Any] = [value.half(), value.long(), value[..., :1], value.flatten(), value * float("nan")]
        odd += [value.to_sparse(), 3, None, "x"]
        weights[rng.choice((name, name, "x", "tokenizer.conv_layers.0.0.weight"))] = rng.choice(odd)
    content: Any = weights
    for _ in range(rng.choice((0, 1, 1, 2))):
        name = rng.choice(("state_dict", "model", "state_dict_ema", "state_dict", "model", "x"))
        content = {name: content, "epoch": rng.choice((3, None, [1]))}
    dense = all(isinstance(value, torch.Tensor) and not value.is_sparse for value in weights.values())
    if dense and rng.random() < 0.2:
        save_file({name: value.contiguous() for name, value in weights.items()}, folder / "x.safetensors")
    else:
        legacy = rng.random() < 0.2
        torch.save(content, folder / "x.pth", _use_new_zipfile_serialization=not legacy)


def _load(folder: Path, rng: random.Random) -> None:
    (path,) = folder.iterdir()
    load_network(path, img_size=rng.choice((8, 8, 8, 8, 16)), num_heads=rng.choice((2, 2, 1, 1, 3)))


CASES = [
    (_parquet, _read("parquet")),
    (_parquet, _read("parquet")),
    (_images, _read("imagefolder")),
    (_tars, _read("webdataset")),
    (_weights, _load),
]


# ---- damage -----------------------------------------------------------------------------------------------------


def _damage(folder: Path, rng: random.Random) -> None:
    path = rng.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
    content = bytearray(path.read_bytes())
    size = max(1, len(content))
    match rng.randrange(6):
        case 0:
            content = content[: rng.randrange(size)]
        case 1:
            for _ in range(rng.choice((1, 3, 30))):
                if content:
                    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        case 2:  # where formats keep their counts
            place = rng.choice((0, max(0, size - 60))) + rng.randrange(60)
            content[place : place + 8] = rng.choice((b"\xff" * 8, bytes(8), b"\x7f" + b"\xff" * 7))
        case 3:
            place = rng.randrange(size)
            content[place:place] = content[: rng.randrange(200)]
        case 4:
            content = bytearray(rng.choice((b"", b"PAR1", b"PK\x03\x04", bytes(5000), rng.randbytes(3000))))
        case 5:
            place = rng.randrange(size)
            content[place : place + rng.randrange(1, 500)] = b""
    path.write_bytes(bytes(content))


# ---- the run ----------------------------------------------------------------------------------------------------


@contextmanager
def _folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def bounded() -> None:
    """Give this process little memory and one thread."""
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def tried(number: int) -> str:
    """The outcome of a case, or what is wrong with it."""
    try:
        return outcome(number)
    except Exception as error:
        return f"fault in case {number}: {type(error).__name__}: {error}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0, help="first case")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    deadline, number, found = time.monotonic() + 60 * options.minutes, options.seed, Counter[str]()
    while time.monotonic() < deadline:
        numbers = range(number, number + 500)
        try:
            with ProcessPoolExecutor(options.workers, initializer=bounded) as pool:
                for told in pool.map(tried, numbers, chunksize=10):
                    found[told] += 1
        except BrokenProcessPool:
            found[f"a worker died in cases {numbers.start} to {numbers.stop - 1}"] += 1
        number = numbers.stop
        print(f"cases {options.seed} to {number - 1}: {dict(found)}", flush=True)
    if faults := found.keys() - {"read", "refused"}:
        sys.exit(f"{len(faults)} faults")


if __name__ == "__main__":
    main()
