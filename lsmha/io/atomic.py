"""Files that are either whole or not there."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from lsmha.io.paths import AnyPath, RunPath, as_path, is_remote

if TYPE_CHECKING:
    from lsmha.io.object_store import ObjectPath


@contextmanager
def atomic_path(path: AnyPath, *, previous: AnyPath | None = None) -> Iterator[Path]:
    """A temporary path beside `path` to write to; renamed onto it, flushed to disk, when the block ends well.

    Whatever kills the process, readers see the old file or the new one, never a part. When the block raises, the
    temporary file is removed and `path` stays as it was. With `previous`, the old file is renamed to that first, and a
    kill between the two leaves it there alone. For an object store the temporary is on this machine; it is uploaded as
    one object, and the old one copied before.

    Raises:
        OSError: The storage is full, read-only or gone, or there is no folder for `path`: the tree of a run that was
            moved away is not begun anew.
    """
    target = as_path(path)
    if is_remote(target):
        with TemporaryDirectory(prefix="lsmha-") as folder:
            upload = Path(folder, target.name)
            yield upload
            _put(target, upload.read_bytes(), previous)
        return
    path = Path(str(target))
    # The suffix stays last: writers that look at it (matplotlib, numpy) behave as for the real name.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        if previous is not None:
            with suppress(FileNotFoundError):
                os.replace(path, str(previous))
        os.replace(temporary, path)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename in (None, str(temporary)):
            error.filename = str(path)  # a write to a full disk does not say where
        with suppress(OSError):  # whatever keeps it there, the first error is the one to tell
            temporary.unlink()
        raise
    parent = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(parent)  # the rename itself
    finally:
        os.close(parent)


def atomic_write_bytes(path: AnyPath, content: bytes, *, previous: AnyPath | None = None) -> None:
    """Replace the file at `path` with `content`, as `atomic_path` does."""
    target = as_path(path)
    if is_remote(target):
        _put(target, content, previous)
        return
    with atomic_path(path, previous=previous) as temporary:
        temporary.write_bytes(content)


def atomic_write_text(path: AnyPath, text: str) -> None:
    """Replace the file at `path` with `text` (UTF-8), as `atomic_path` does."""
    atomic_write_bytes(path, text.encode())


def _put(path: ObjectPath, content: bytes, previous: AnyPath | None) -> None:
    if previous is not None:
        kept = as_path(previous)
        assert is_remote(kept)
        with suppress(FileNotFoundError):
            path.copy_to(kept)
    path.write_bytes(content)


def abandoned_temporaries(folder: RunPath) -> list[RunPath]:
    """The temporaries of `atomic_path` directly in `folder`: while nobody writes there, those that killed writers left.

    Raises:
        OSError: The folder cannot be read.
    """
    return sorted(path for path in folder.iterdir() if re.fullmatch(r"\..+\.\d+(\.[^.]+)?", path.name))
