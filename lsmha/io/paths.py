"""Where files are: on disk, or on an object store."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path, PurePath
from typing import IO, TYPE_CHECKING, Any, Literal, Protocol

from typing_extensions import Self, TypeIs

if TYPE_CHECKING:
    from lsmha.io.object_store import ObjectPath

_DRIVERS = {
    "s3": ("s3fs", "s3"), "gs": ("gcsfs", "gcs"), "gcs": ("gcsfs", "gcs"), "hf": ("huggingface_hub", "hub")
}  # fmt: skip
"""By scheme, the package that fsspec needs for it and the extra of ours that installs it."""


class RunPath(Protocol):
    """What may be read and written wherever it is: the methods of `pathlib.Path` that a run needs.

    `pathlib.Path` has them for files on disk, `lsmha.io.object_store.ObjectPath` for objects in a store.
    """

    @property
    def name(self) -> str: ...
    @property
    def stem(self) -> str: ...
    @property
    def suffix(self) -> str: ...
    @property
    def parts(self) -> Sequence[str]: ...
    @property
    def parent(self) -> Self: ...
    @property
    def parents(self) -> Sequence[Self]: ...
    def __truediv__(self, name: str, /) -> Self: ...
    def with_name(self, name: str, /) -> Self: ...
    def __lt__(self, other: Self, /) -> bool: ...
    def absolute(self) -> Self: ...
    def resolve(self) -> Self: ...
    def relative_to(self, other: Self, /) -> PurePath: ...
    def exists(self) -> bool: ...
    def is_file(self) -> bool: ...
    def is_dir(self) -> bool: ...
    def mkdir(self, *, parents: bool = False, exist_ok: bool = False) -> None: ...
    def rmdir(self) -> None: ...
    def iterdir(self) -> Iterator[Self]: ...
    def glob(self, pattern: str, /) -> Iterator[Self]: ...
    def rglob(self, pattern: str, /) -> Iterator[Self]: ...
    def open(self, mode: Literal["rb"]) -> IO[bytes]: ...
    def read_bytes(self) -> bytes: ...
    def read_text(self, encoding: str) -> str: ...
    def write_bytes(self, data: bytes, /) -> int: ...
    def unlink(self, missing_ok: bool = False) -> None: ...
    def replace(self, target: Self, /) -> Self: ...


def path_of(text: str) -> RunPath:
    """The path that a user means: `scheme://bucket/key` is on an object store, `hf://datasets/NAME` on the Hugging Face
    hub, all else on disk.

    `~` is a home folder: shells leave it alone in `--out=~/runs/a`, and in quotes.

    Raises:
        ValueError: There is no such kind of store, the package that it needs is not installed, or no such home folder.
    """
    scheme, separator, rest = text.partition("://")
    if not separator:
        expanded = os.path.expanduser(text)
        if expanded.startswith("~"):
            raise ValueError(f"must begin with a home folder that there is, or with ./, but got {text!r}")
        return Path(expanded)
    if scheme not in _DRIVERS or not rest.strip("/"):
        raise ValueError(
            f"must be a path, s3://bucket/folder, gs://bucket/folder or, for data, hf://datasets/NAME, but got {text!r}"
        )
    package, extra = _DRIVERS[scheme]
    if find_spec(package) is None:
        raise ValueError(f'{scheme}:// needs {package}: pip install "lsmha-sweep[{extra}]"')
    from lsmha.io.object_store import object_path  # here, because work on disk must not wait for it

    return object_path(f"{scheme}://{rest.strip('/')}")


AnyPath = str | os.PathLike[str] | RunPath
"""A path, or the name of one on disk."""


def as_path(path: AnyPath) -> RunPath:
    """The path itself, or that on disk of the name."""
    return Path(path) if isinstance(path, str | os.PathLike) else path


def is_remote(path: Any) -> TypeIs[ObjectPath]:
    """Whether a path is on an object store."""
    return not isinstance(path, str | os.PathLike)


def read_all(paths: Sequence[RunPath]) -> Iterable[bytes]:
    """The contents of files that are all in one place; an object store is asked for many at a time.

    Raises:
        OSError: One of them cannot be read.
    """
    remote = [path for path in paths if is_remote(path)]
    if not remote:
        return (path.read_bytes() for path in paths)
    from lsmha.io.object_store import read_objects  # here, because work on disk must not wait for it

    return read_objects(remote)
