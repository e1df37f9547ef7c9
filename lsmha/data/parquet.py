"""Parquet files in the layout of the Hugging Face hub: encoded images, integer labels, class names in the schema."""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from lsmha.config import DataConfig
from lsmha.data.decoding import decode_images
from lsmha.data.images import LabeledImages
from lsmha.errors import DataError
from lsmha.io.paths import RunPath, is_remote, path_of
from lsmha.progress import OnProgress

ROWS_PER_BATCH = 1024
"""Rows whose encoded images are held as Python objects at a time."""


def load_parquet(
    config: DataConfig, on_progress: OnProgress
) -> tuple[LabeledImages, LabeledImages, tuple[str, ...] | None]:
    """Training images, test images and class names, which are None where the schema has none.

    Raises:
        DataError: no matching or unreadable files, absent or ambiguous columns, null or negative labels, or damaged
            images.
    """
    files = _find_files(config)
    train = _load_split("train", files["train"], config, config.img_size, on_progress)
    # Without a size given, the test images follow the training images'.
    test = _load_split("test", files["test"], config, train.images.shape[-1], on_progress)
    schema = _open(files["train"][0]).schema_arrow
    return train, test, _class_names(schema, _label_column(schema, config, files["train"][0]))


def _find_files(config: DataConfig) -> dict[str, list[RunPath]]:
    if config.path is None:
        raise DataError("data.path must be the folder or file glob of the Parquet files for data.name='parquet'")
    try:
        path = path_of(os.path.expanduser(config.path))
    except ValueError as error:
        raise DataError(f"data.path {error}") from None
    with _readable(path):
        found = _matching(path)
    files: dict[str, list[RunPath]] = {"train": [], "test": [], "val": []}
    for file in found:
        if match := re.search(r"(?<![a-z])(train|test|val)", file.name.lower()):
            files[match.group(1)].append(file)
    files["test"] = files["test"] or files["val"]
    for split, allowed in {"train": "train*", "test": "test* or validation*"}.items():
        if not files[split]:
            with _readable(path):
                what = f"{len(found)} Parquet files" if found else "no Parquet files" if path.exists() else "nothing"
            raise DataError(f"data.path={config.path!r} matches {what}, but needs files named {allowed}.parquet")
    return files


def _matching(path: RunPath) -> list[RunPath]:
    """The Parquet files in a folder, or what a glob matches, sorted."""
    if path.is_dir():
        return sorted(path.rglob("*.parquet"))
    if is_remote(path):
        return list(path.matching())
    return sorted(Path(name) for name in glob.glob(str(path), recursive=True))


def _load_split(
    split: str, files: list[RunPath], config: DataConfig, img_size: int | None, on_progress: OnProgress
) -> LabeledImages:
    labels = torch.cat([_read_labels(file, config) for file in files])
    if not len(labels):
        raise DataError(f"data.path={config.path!r} has no rows in its {split} files; at least one image is needed")

    def records() -> Iterator[tuple[str, bytes | None]]:
        for file in files:
            yield from _read_images(file, config)

    images = decode_images(
        records, len(labels), img_size=img_size, description=f"decoding {split} images", on_progress=on_progress
    )
    return LabeledImages(images, labels)


def _read_labels(file: RunPath, config: DataConfig) -> torch.Tensor:
    parquet = _open(file)
    column = _label_column(parquet.schema_arrow, config, file)
    with _readable(file):
        labels = parquet.read(columns=[column]).column(column)
    valid = pc.fill_null(pc.greater_equal(labels, 0), False)
    if (row := pc.index(valid, False).as_py()) >= 0:
        raise DataError(
            f"data.label_column={column!r} is {labels[row].as_py()} in {file} row {row}; labels are integers >= 0"
        )
    return torch.from_numpy(labels.to_numpy().astype("int64"))


def _read_images(file: RunPath, config: DataConfig) -> Iterator[tuple[str, bytes | None]]:
    parquet = _open(file)
    column = _image_column(parquet.schema_arrow, config, file)
    row = 0
    with _readable(file):
        for batch in parquet.iter_batches(ROWS_PER_BATCH, columns=[f"{column}.bytes"]):
            for encoded in pc.struct_field(batch.column(0), "bytes").to_pylist():
                yield f"{file} row {row}", encoded
                row += 1


def _image_column(schema: pa.Schema, config: DataConfig, file: RunPath) -> str:
    images = [f.name for f in schema if pa.types.is_struct(f.type) and f.type.get_field_index("bytes") >= 0]
    return _pick("image_column", config.image_column, images, "struct column with a `bytes` field", file)


def _label_column(schema: pa.Schema, config: DataConfig, file: RunPath) -> str:
    labels = [field.name for field in schema if pa.types.is_integer(field.type)]
    return _pick("label_column", config.label_column, labels, "integer column", file)


def _pick(setting: str, given: str | None, candidates: list[str], kind: str, file: RunPath) -> str:
    if given is None and len(candidates) == 1:
        return candidates[0]
    if given in candidates:
        return given
    found = f"{file} has {', '.join(candidates) or 'none'}"
    raise DataError(f"data.{setting}={given!r} must name one {kind} of each file, of which {found}")


def _class_names(schema: pa.Schema, label_column: str) -> tuple[str, ...] | None:
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return tuple(str(name) for name in features[label_column]["names"])
    except (KeyError, TypeError, ValueError):  # other writers' metadata: absent, or of another shape
        return None


def _open(file: RunPath) -> pq.ParquetFile:
    with _readable(file):
        return pq.ParquetFile(file.open_seekable() if is_remote(file) else str(file))


@contextmanager
def _readable(file: RunPath) -> Iterator[None]:
    try:
        if is_remote(file):
            from lsmha.io.object_store import store_errors  # here, because work on disk must not wait for it

            with store_errors(file):
                yield
        else:
            yield
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"data.path: cannot read {file} as Parquet: {reason}") from error
