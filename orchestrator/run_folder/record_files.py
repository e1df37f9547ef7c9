"""One record, one immutable file: JSON with its checksum and the hash of what was run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from lsmha.errors import DamagedFileError
from lsmha.io.checksums import CHECKSUM_PLACEHOLDER, checked, write_checked
from lsmha.io.paths import RunPath, read_all
from orchestrator.run_folder.content_hash import DIGITS_IN_NAMES


class StoredRecord(NamedTuple):
    """What the file of a record holds."""

    name: str
    """Such as `t0007`."""
    key: str
    """Of what was run, hex."""
    content: Any
    """Plain values."""


def record_path(folder: RunPath, name: str, key: str) -> RunPath:
    """Where the record of that work goes."""
    return folder / f"{name}-{key[:DIGITS_IN_NAMES]}.json"


def write_record(folder: RunPath, name: str, key: str, content: Any, *, replace: bool = False) -> None:
    """Write a record. One of the same name and key says that this work was done before: it stays, unless `replace`.

    Raises:
        OSError: The storage is full, read-only or gone.
        ValueError: `content` is not plain, or not finite.
    """
    path = record_path(folder, name, key)
    if replace or not path.exists():
        record = {"name": name, "key": key, "checksum": CHECKSUM_PLACEHOLDER, "content": content}
        text = json.dumps(record, indent=1, allow_nan=False) + "\n"
        folder.mkdir(exist_ok=True)
        write_checked(path, text.encode())


def read_record(path: RunPath) -> StoredRecord:
    """Read a record.

    Raises:
        OSError: It cannot be read.
        DamagedFileError: It is not, bit for bit, what `write_record` wrote there.
    """
    return _parse(path, path.read_bytes())


def read_records(paths: Sequence[RunPath]) -> Iterator[tuple[RunPath, StoredRecord | DamagedFileError]]:
    """Read many records, from an object store many at a time: each, or that it is damaged.

    Raises:
        OSError: One cannot be read.
    """
    for path, content in zip(paths, read_all(paths), strict=True):
        try:
            yield path, _parse(path, content)
        except DamagedFileError as error:
            yield path, error


def _parse(path: RunPath, content: bytes) -> StoredRecord:
    record = json.loads(checked(content, path))
    name, key = record["name"], record["key"]
    if record_path(path.parent, name, key) != path:
        raise DamagedFileError(f"{path} is not the record that it is named after: it holds {name}")
    return StoredRecord(name, key, record["content"])
