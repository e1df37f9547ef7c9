"""Which files make up which split of a data set, by the names of the files and of the folders that they lie in."""

from __future__ import annotations

import glob
import hashlib
import itertools
import os
import re
import tarfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pyarrow as pa

from lsmha.errors import DataError
from lsmha.io.paths import RunPath, is_remote, path_of

_SPLITS = {"train": r"train(?:ing)?", "val": r"val(?:id(?:ation)?)?|dev", "test": r"test(?:ing)?|eval(?:uation)?"}
_NAMED = {split: re.compile(rf"(?<![a-z])(?:{words})(?:_?(?:set|data))?(?![a-z])") for split, words in _SPLITS.items()}
"""What names a split, as the hub's `datasets` has it: a word of its own in a file's or folder's name."""
_SHARD = re.compile(r"(?<!\d)(\d{5,})-of-(\d{5,})(?!\d)")
_WILDCARD = re.compile(r"[*?\[]")


def is_hidden(name: str) -> bool:
    """Whether a name is of another program's notes: `.ipynb_checkpoints`, macOS's `._0.png` and `__MACOSX`."""
    return name.startswith((".", "__"))


def printable(path: object) -> str:
    """A path or name as text for messages and tables, whatever bytes it is of."""
    return str(path).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


@dataclass(frozen=True)
class SplitFile:
    """A file of a split."""

    path: RunPath
    parts: tuple[str, ...]
    """Of its path, below what was asked for."""

    def __str__(self) -> str:
        return printable(self.path)

    def open(self) -> IO[bytes]:
        """To be read from any place; opened by Python, since Arrow takes no names that are not UTF-8."""
        return self.path.open_seekable() if is_remote(self.path) else self.path.open("rb")

    @property
    def hive(self) -> dict[str, str]:
        """What the folders above it say of all its rows, by column: `label=cat/part-0.parquet`."""
        pairs = (part.partition("=") for part in self.parts[:-1])
        return {name: value for name, separator, value in pairs if separator and split_of([value]) is None}


@dataclass(frozen=True)
class Layout:
    """The files of each split, which are all of one data set."""

    train: list[SplitFile]
    test: list[SplitFile]
    val: list[SplitFile]


def find_splits(path: str, *, suffix: str, kind: str) -> Layout:
    """The files of each split in a folder, however deep, or among those that a glob matches.

    The nearest part of a file's path that names a split says which one it is of, and the folder above that which data
    set; paths with a part that begins with `.` or `_` are left out, as Arrow and Spark do.

    Args:
        path: The folder or glob, as the user gave it; on disk or in an object store.
        suffix: Of the files.
        kind: What the files are called in messages.

    Raises:
        DataError: There are none for training, or neither for test nor validation; there is more than one data set;
            files are there twice, or lack a part of their series.
    """
    try:
        root = path_of(path)
    except ValueError as error:
        raise DataError(f"data.path {error}") from None
    with readable(root, kind):
        is_folder = root.is_dir()
        found = list(_in_folder(root, suffix) if is_folder else _matching(root))
    splits: dict[str, dict[tuple[str, ...], list[SplitFile]]] = {split: defaultdict(list) for split in _SPLITS}
    for file in found:
        if (named := split_of(file.parts)) is not None:
            split, place = named
            above = tuple(part for part in file.parts[:place] if "=" not in part)
            splits[split][above].append(file)
    for needed, allowed in ((("train",), "train*"), (("test", "val"), "test* or validation*")):
        if not any(splits[split] for split in needed):
            with readable(root, kind):
                there = f"{len(found)} {kind} files" if found else f"no {kind} files" if root.exists() else "nothing"
            raise DataError(f"data.path={path!r} matches {there}, but needs files named {allowed}{suffix}")
    for split, sets in splits.items():
        if is_folder and len(sets) > 1:
            names = ", ".join(sorted(printable(_below(root, above)) for above in sets))
            raise DataError(f"data.path={path!r} holds several data sets with a {split} split; name one of {names}")
        for files in sets.values():
            _check_copies(files)
            if is_folder:  # who gives a glob may want some parts alone
                _check_series(files)
    one = {split: [file for files in sets.values() for file in files] for split, sets in splits.items()}
    return Layout(one["train"], one["test"], one["val"])


def split_of(parts: Sequence[str]) -> tuple[str, int] | None:
    """The split that the nearest part of a path names, and which part that is; None where none does."""
    for place in reversed(range(len(parts))):
        for split, named in _NAMED.items():
            if named.search(parts[place].lower()):
                return split, place
    return None


@contextmanager
def readable(file: RunPath, kind: str) -> Iterator[None]:
    """Make what fails in reading a file a `DataError` that names it."""
    try:
        if is_remote(file):
            from lsmha.io.object_store import store_errors  # here, because work on disk must not wait for it

            with store_errors(file):
                yield
        else:
            yield
    except DataError:
        raise
    except (OSError, ValueError, OverflowError, MemoryError, EOFError, tarfile.TarError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"data.path: cannot read {printable(file)} as {kind}: {reason}") from error


def _in_folder(root: RunPath, suffix: str) -> Iterator[SplitFile]:
    for path in sorted(root.rglob(f"*{suffix}")):
        parts = tuple(path.relative_to(root).parts)
        # Spark's files of many parts are folders. A store lists files alone, and each question takes it a while.
        if not any(is_hidden(part) or part.startswith("_") for part in parts) and (is_remote(path) or path.is_file()):
            yield SplitFile(path, parts)


def _matching(pattern: RunPath) -> Iterator[SplitFile]:
    names: Iterable[RunPath] = (
        pattern.matching() if is_remote(pattern) else map(Path, sorted(glob.glob(str(pattern), recursive=True)))
    )
    fixed = next((place for place, part in enumerate(pattern.parts) if _WILDCARD.search(part)), len(pattern.parts))
    for path in names:
        yield SplitFile(path, tuple(path.parts[min(fixed, len(path.parts) - 1) :]))


def _below(root: RunPath, parts: Iterable[str]) -> RunPath:
    for part in parts:
        root = root / part
    return root


def _check_copies(files: Sequence[SplitFile]) -> None:
    """Refuse files whose rows would count twice.

    Raises:
        DataError: Two are the same part of a series, or have the same content.
    """
    parts: dict[str, SplitFile] = {}
    for file in files:
        if shard := _SHARD.search(file.parts[-1]):
            other = parts.setdefault(shard[0], file)
            if other is not file:
                raise DataError(f"data.path: {other} and {file} are the same part of a split; keep one")
    contents: dict[str, SplitFile] = {}
    for file in _of_equal_size(files):
        other = contents.setdefault(_digest(file.path), file)
        if other is not file:
            raise DataError(f"data.path: {other} and {file} have the same content; keep one of them")


def _check_series(files: Sequence[SplitFile]) -> None:
    """Refuse a split that lacks a part, or has parts of two series.

    Raises:
        DataError: Rows would be missing, or count twice.
    """
    series: dict[str, set[int]] = defaultdict(set)
    for file in files:
        if shard := _SHARD.search(file.parts[-1]):
            series[shard[2]].add(int(shard[1]))
    folder = printable(files[0].path.parent)
    if len(series) > 1:
        raise DataError(f"data.path: {folder} has parts of {' and of '.join(sorted(series))}; keep those of one series")
    for total, there in series.items():
        if len(there) < int(total):
            first = next(number for number in itertools.count() if number not in there)
            lacking = int(total) - len(there)
            raise DataError(f"data.path: {folder} lacks {lacking} of {total} parts, of which {first:05} is the first")


def _of_equal_size(files: Sequence[SplitFile]) -> list[SplitFile]:
    """Those on disk that another one may be a copy of."""
    sizes: dict[int, list[SplitFile]] = defaultdict(list)
    for file in files:
        if not is_remote(file.path):
            sizes[os.path.getsize(str(file.path))].append(file)
    return [file for same in sizes.values() if len(same) > 1 for file in same]


def _digest(path: RunPath) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
