"""Parquet files, as the Hugging Face hub and others lay them out: encoded images, and labels as numbers or words."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lsmha.config import DataConfig
from lsmha.data.images import LabeledImages
from lsmha.data.reading.decoding import Record, decode_splits
from lsmha.data.reading.labels import numbered
from lsmha.data.reading.layout import SplitFile, find_splits, readable
from lsmha.errors import DataError
from lsmha.io.paths import is_remote
from lsmha.progress import OnNote, OnProgress

ROWS_PER_BATCH = 1024
"""Rows whose encoded images are held as Python objects at a time."""
KIND = "Parquet"


def load_parquet(
    config: DataConfig, on_progress: OnProgress, on_note: OnNote
) -> tuple[LabeledImages, LabeledImages, tuple[str, ...] | None]:
    """Training images, test images and class names; these are None where labels are numbers and the schema has none.

    Raises:
        DataError: no matching or unreadable files, absent or ambiguous columns, null or negative labels, or damaged
            images.
    """
    if config.path is None:
        raise DataError("data.path must be the folder or file glob of the Parquet files for data.name='parquet'")
    layout = find_splits(config.path, suffix=".parquet", kind=KIND)
    train_files, test_files = layout.train, layout.test or layout.val
    train, test = ([_labels_of(file, config) for file in files] for files in (train_files, test_files))
    if layout.test and layout.val and all(labels.are_hidden for labels in test):
        on_note(f"data.path={config.path!r}: the test labels are hidden, so validation images are the test images")
        test_files = layout.val
        test = [_labels_of(file, config) for file in test_files]
    names = _class_names([*train, *test])
    train_labels, test_labels, words = numbered(_joined("train", train, config), _joined("test", test, config))
    return *decode_splits(
        (partial(_images, train_files, config), train_labels),
        (partial(_images, test_files, config), test_labels),
        config,
        on_progress,
    ), words or names


# ---- labels -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Labels:
    """Those of a file."""

    file: SplitFile
    column: str
    values: pa.ChunkedArray
    """int64, or large_string, with nulls."""
    names: tuple[str, ...] | None
    """That its schema states."""

    @property
    def are_words(self) -> bool:
        return bool(pa.types.is_large_string(self.values.type))

    @property
    def are_hidden(self) -> bool:
        """Whether all rows lack their label, or have -1 in its place."""
        if self.values.null_count == len(self.values):
            return True
        return not self.are_words and bool(pc.all(pc.equal(self.values, -1)).as_py())

    def checked(self) -> np.ndarray:
        """(n,): whole numbers, or words.

        Raises:
            DataError: One is null or negative.
        """
        valid = pc.is_valid(self.values)
        if not self.are_words:
            valid = pc.fill_null(pc.greater_equal(self.values, 0), False)
        if (row := pc.index(valid, False).as_py()) >= 0:
            found = f"{self.values[row].as_py()} in {self.file} row {row}"
            raise DataError(f"data.label_column={self.column!r} is {found}; labels are integers >= 0")
        if self.are_words:
            return np.array(self.values.to_pylist(), dtype=np.str_)
        return np.asarray(self.values.to_numpy(), dtype=np.int64)


def _labels_of(file: SplitFile, config: DataConfig) -> _Labels:
    with _opened(file) as parquet:
        schema = parquet.schema_arrow
        column = _label_column(file, schema, config)
        if column in schema.names:
            values = parquet.read(columns=[column]).column(column)
        else:
            value = file.hive[column]
            of_all = [int(value) if value.isdecimal() else value] * parquet.metadata.num_rows
            values = pa.chunked_array([pa.array(of_all)])
        values = values.cast(pa.large_string() if _is_word(values.type) else pa.int64())
    return _Labels(file, column, values, _stated_names(schema, column))


def _label_column(file: SplitFile, schema: pa.Schema, config: DataConfig) -> str:
    numbers = [field.name for field in schema if _is_number(field.type)] + [*file.hive]
    images = {*_image_columns(schema, config), config.image_column}
    words = [field.name for field in schema if _is_word(field.type) and field.name not in images]
    # Words are often captions, so they are labels only where there are no numbers, or when they are asked for.
    candidates = numbers + words if config.label_column is not None or not numbers else numbers
    return _pick("label_column", config.label_column, candidates, "integers or words", file, schema)


def _joined(split: str, files: Sequence[_Labels], config: DataConfig) -> np.ndarray:
    """Those of all rows, (n,)."""
    labels = [part for part in (labels.checked() for labels in files) if len(part)]
    if not labels:
        raise DataError(f"data.path={config.path!r} has no rows in its {split} files; at least one image is needed")
    if len({part.dtype.kind for part in labels}) > 1:
        raise DataError(f"data.label_column must be of the same kind in all {split} files of {config.path!r}")
    return np.concatenate(labels)


def _is_number(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_integer(kind) or pa.types.is_boolean(kind))


def _is_word(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _stated_names(schema: pa.Schema, column: str) -> tuple[str, ...] | None:
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return tuple(str(name) for name in features[column]["names"])
    except (KeyError, TypeError, ValueError):  # other writers' metadata: absent, or of another shape
        return None


def _class_names(files: Sequence[_Labels]) -> tuple[str, ...] | None:
    """Those that the schemas state, which must agree."""
    stated: dict[tuple[str, ...], SplitFile] = {}
    for labels in files:
        if labels.names is not None:
            stated.setdefault(labels.names, labels.file)
    if len(stated) > 1:
        one, other, *_ = stated.values()
        raise DataError(f"data.path: the names of the labels in {one} are not those in {other}")
    return next(iter(stated), None)


# ---- images -----------------------------------------------------------------------------------------------------


def _images(files: Sequence[SplitFile], config: DataConfig) -> Iterator[Record]:
    for file in files:
        yield from _read_images(file, config)


def _read_images(file: SplitFile, config: DataConfig) -> Iterator[Record]:
    with _opened(file) as parquet:
        schema = parquet.schema_arrow
        candidates = _image_columns(schema, config)
        column = _pick("image_column", config.image_column, candidates, "encoded images", file, schema)
        kind = schema.field(column).type
        columns = [column]
        if pa.types.is_struct(kind):
            columns = [f"{column}.{name}" for name in ("bytes", "path") if kind.get_field_index(name) >= 0]
        row = 0
        for batch in parquet.iter_batches(ROWS_PER_BATCH, columns=columns):
            for value in batch.column(0).to_pylist():
                where = f"{file} row {row}"
                yield where, _encoded(value, where, file)
                row += 1


def _encoded(value: Any, where: str, file: SplitFile) -> bytes | Path | None:
    """What a row holds, or the file beside it that the row names."""
    encoded, name = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
    if isinstance(encoded, str):
        encoded, name = None, encoded
    if encoded is not None or name is None:
        return encoded
    beside = PurePosixPath(name)
    if beside.is_absolute() or ".." in beside.parts:
        raise DataError(
            f"data.path: {where} names {name!r}; without bytes, images must lie below the file's own folder"
        )
    path = file.path.parent
    for part in beside.parts:
        path = path / part
    if is_remote(path):
        with readable(path, "an image"):
            return path.read_bytes()
    return Path(str(path))


def _image_columns(schema: pa.Schema, config: DataConfig) -> list[str]:
    """Columns that may be of images: what the hub writes; where there is none, bytes; what is named, also paths."""
    found = [f.name for f in schema if pa.types.is_struct(f.type) and f.type.get_field_index("bytes") >= 0]
    found = found or [f.name for f in schema if pa.types.is_binary(f.type) or pa.types.is_large_binary(f.type)]
    named = [f.name for f in schema if f.name == config.image_column and _is_word(f.type)]
    return found + named


# ---- files ------------------------------------------------------------------------------------------------------


def _pick(setting: str, given: str | None, candidates: list[str], kind: str, file: SplitFile, schema: pa.Schema) -> str:
    if given is None and len(candidates) == 1:
        return candidates[0]
    if given is not None and candidates.count(given) == 1:
        return given
    there = ", ".join(f"{field.name} ({field.type})" for field in schema)
    found = ", ".join(candidates) if candidates else f"none among {there or 'no columns'}"
    raise DataError(
        f"data.{setting}={given!r} must name one column of {kind} of each file, of which {file} has {found}"
    )


@contextmanager
def _opened(file: SplitFile) -> Iterator[pq.ParquetFile]:
    with readable(file.path, KIND), file.open() as handle:
        yield pq.ParquetFile(handle)
