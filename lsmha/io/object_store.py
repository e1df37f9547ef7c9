"""Paths on an object store, by fsspec: the methods of `pathlib.Path` that a run needs, with the errors of a disk."""

from __future__ import annotations

import errno
import io
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import IO, Any

from upath.extensions import ProxyUPath

_CONFLICTS = ("PreconditionFailed", "ConditionalRequestConflict")
"""What stores answer where an object that must be new is there already, or comes to be there at the same moment."""

_CLIENTS = (
    "botocore", "aiobotocore", "s3fs", "gcsfs", "google", "aiohttp", "fsspec", "asyncio",
    "huggingface_hub", "httpx", "httpx2", "requests",
)  # fmt: skip
"""Packages whose errors are those of a store."""


# Where a connection goes while a request is written, aiohttp leaves that task behind, and asyncio prints its traceback.
# The call that made the request raises an error of its own.
logging.getLogger("asyncio").addFilter(lambda record: "exception was never retrieved" not in record.getMessage())


class ObjectPath(ProxyUPath):
    """An object, or what a common prefix makes look like a folder.

    Each file is read and written whole by one request, so a reader sees the old one or the new one. Nothing is cached:
    other processes' writes are seen. Folders need not be made, and are gone with the last file in them.

    Raises:
        OSError: From every method that asks the store; with `errno`, `strerror` and `filename`, as from a disk. Only
            what the store says is not there counts as that: a store that does not answer is an error (EIO).
    """

    __slots__ = ()

    def read_bytes(self) -> bytes:
        with store_errors(self):
            return self.fs.cat_file(self.path)

    def read_text(self, encoding: str | None = None, *_: Any, **__: Any) -> str:
        return self.read_bytes().decode(encoding or "utf-8")

    def open(self, mode: str = "r", *_: Any, **__: Any) -> IO[Any]:  # type: ignore[override]
        if mode != "rb":
            raise ValueError(f"objects are opened to be read as bytes, not as {mode!r}: write_bytes replaces one")
        return io.BytesIO(self.read_bytes())

    def open_seekable(self) -> IO[bytes]:
        """The file, of which parts are fetched as they are read: for those too large to hold."""
        with store_errors(self):
            return self.fs.open(self.path, "rb")

    def write_bytes(self, data: bytes) -> int:
        with store_errors(self):
            self.fs.pipe_file(self.path, data)
        return len(data)

    def write_text(self, data: str, encoding: str | None = None, *_: Any, **__: Any) -> int:
        return self.write_bytes(data.encode(encoding or "utf-8"))

    def create(self, data: bytes) -> bool:
        """Write the file unless there is one, in one step; returns whether it was written."""
        try:
            with store_errors(self):
                self.fs.pipe_file(self.path, data, mode="create")
        except FileExistsError:
            return False
        return True

    def modified(self) -> datetime:
        """When the file was written, by the store's clock."""
        with store_errors(self):
            return self.fs.modified(self.path)

    def exists(self, **_: Any) -> bool:
        return self._kind() is not None

    def is_file(self, **_: Any) -> bool:
        return self._kind() == "file"

    def is_dir(self, **_: Any) -> bool:
        return self._kind() == "directory"

    def mkdir(self, *_: Any, **__: Any) -> None:
        """Nothing: a folder is there as soon as there is something in it."""

    def rmdir(self, *_: Any, **__: Any) -> None:
        """Nothing: UPath's own would delete what is in it."""

    def iterdir(self) -> Iterator[ObjectPath]:
        with store_errors(self):
            found = self.fs.ls(self.path, detail=False)
        own = self.path.rstrip("/")
        names = (name.rstrip("/").rpartition("/")[2] for name in found if name.rstrip("/") != own)
        return iter([self / name for name in sorted(names)])

    def glob(self, pattern: str, **_: Any) -> Iterator[ObjectPath]:
        """The files that fit a pattern of as many parts; `**` and folders are beyond it."""
        parts = pattern.split("/")
        if len(parts) == 1:
            try:
                return iter([path for path in self.iterdir() if fnmatchcase(path.name, pattern)])
            except FileNotFoundError:
                return iter(())
        return (
            self / "/".join(found)
            for found in self._files()
            if len(found) == len(parts) and all(map(fnmatchcase, found, parts))
        )

    def rglob(self, pattern: str, **_: Any) -> Iterator[ObjectPath]:
        """The files whose names fit a pattern, however deep."""
        return (self / "/".join(found) for found in self._files() if fnmatchcase(found[-1], pattern))

    def matching(self) -> list[ObjectPath]:
        """The objects that fit this path, taken as a pattern."""
        with store_errors(self):
            return [object_path(f"{self.protocol}://{name.lstrip('/')}") for name in sorted(self.fs.glob(self.path))]

    def unlink(self, missing_ok: bool = False) -> None:
        try:
            with store_errors(self):
                self.fs.rm_file(self.path)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def replace(self, target: Any) -> Any:
        """Move a file, in two steps: a kill between them leaves both."""
        self.copy_to(target)
        self.unlink()
        return target

    def copy_to(self, target: ObjectPath) -> None:
        """Copy a file within the store."""
        with store_errors(self):
            self.fs.cp_file(self.path, target.path)

    def relative_to(self, other: Any, *_: Any, **__: Any) -> Any:
        return PurePosixPath(self.path).relative_to(other.path)

    def absolute(self) -> ObjectPath:
        return self

    def _kind(self) -> str | None:
        try:
            with store_errors(self):
                return self.fs.info(self.path)["type"]
        except FileNotFoundError:
            return None

    def _files(self) -> list[tuple[str, ...]]:
        """Parts, below this folder, of the path of each file in it, however deep, in order."""
        with store_errors(self):
            found = self.fs.find(self.path)
            # The hub's listings write out, or leave away, what a name says of the revision.
            resolve = getattr(self.fs, "resolve_path", None)
            own = self.path.rstrip("/") if resolve is None else resolve(self.path).unresolve()
        return sorted(PurePosixPath(name).relative_to(own).parts for name in found if not name.endswith("/"))


def object_path(url: str) -> ObjectPath:
    """The path that a URL names."""
    # Listings that are kept would hide what other processes write.
    return ObjectPath(url, use_listings_cache=False)


def read_objects(paths: Sequence[ObjectPath]) -> list[bytes]:
    """The contents of some files of one store, of which it is asked for many at a time.

    Raises:
        OSError: One of them cannot be read.
    """
    with store_errors(paths[0].parent):
        found = paths[0].fs.cat([path.path for path in paths], on_error="return")
    contents = []
    for path in paths:
        content = found[path.path]
        with store_errors(path):
            if isinstance(content, Exception):
                raise content
        contents.append(content)
    return contents


@contextmanager
def store_errors(path: Any) -> Iterator[None]:
    """Turn what the store's client raises in the block into an OSError about `path`, as a disk would raise it."""
    try:
        yield
    except Exception as error:
        store_error = as_os_error(error, str(path))
        if store_error is None:
            raise
        raise store_error from error


def as_os_error(error: BaseException, filename: str | None = None) -> OSError | None:
    """What a store's client raised as the OSError that a disk would raise; None where the error is of another kind."""
    if not isinstance(error, OSError | ValueError) and type(error).__module__.partition(".")[0] not in _CLIENTS:
        return None
    cause = getattr(error.__cause__, "response", None) or {}
    text = " ".join((getattr(error, "strerror", None) or str(error) or type(error).__name__).split())
    if isinstance(error, FileNotFoundError):
        number = errno.ENOENT
    elif isinstance(error, FileExistsError) or cause.get("Error", {}).get("Code") in _CONFLICTS:
        number = errno.EEXIST
    elif isinstance(error, PermissionError):
        number = errno.EACCES
    else:
        number = errno.EIO
    only_named = isinstance(error, FileNotFoundError) and (" " not in text or (filename or "").endswith(text))
    return OSError(number, os.strerror(number) if only_named else text, filename)
