"""Where files are: on disk, or on an object store."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_DRIVERS = {"s3": ("s3fs", "s3"), "gs": ("gcsfs", "gcs"), "gcs": ("gcsfs", "gcs")}
"""By scheme, the package that fsspec needs for it and the extra of ours that installs it."""


def path_of(text: str) -> Path:
    """The path that a user means: `scheme://bucket/key` is on an object store, all else on disk.

    What is on an object store is an `lsmha.io.object_store.ObjectPath`, which has those of `Path`'s methods that serve
    there: type checkers may take it for one.

    Raises:
        ValueError: There is no such kind of store, or the package that it needs is not installed.
    """
    scheme, separator, rest = text.partition("://")
    if not separator:
        return Path(text)
    if scheme not in _DRIVERS or not rest.strip("/"):
        raise ValueError(f"must be a path, s3://bucket/folder or gs://bucket/folder, but got {text!r}")
    package, extra = _DRIVERS[scheme]
    if find_spec(package) is None:
        raise ValueError(f'{scheme}:// needs {package}: pip install "lsmha-sweep[{extra}]"')
    from lsmha.io.object_store import object_path  # here, because work on disk must not wait for it

    path: Any = object_path(f"{scheme}://{rest.strip('/')}")
    return path


def as_path(path: str | os.PathLike[str]) -> Path:
    """The path itself, or that on disk of the name."""
    remote: Any = path
    return remote if is_remote(path) else Path(path)


def is_remote(path: Any) -> bool:
    """Whether a path is on an object store."""
    return not isinstance(path, str | os.PathLike)


def read_all(paths: Sequence[Path]) -> Iterable[bytes]:
    """The contents of files that are all in one place; an object store is asked for many at a time.

    Raises:
        OSError: One of them cannot be read.
    """
    if not paths or not is_remote(paths[0]):
        return (path.read_bytes() for path in paths)
    from lsmha.io.object_store import read_objects

    remote: Any = paths
    return read_objects(remote)
