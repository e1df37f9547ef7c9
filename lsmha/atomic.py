"""Files that are either whole or not there."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def atomic_path(path: str | os.PathLike[str], *, previous: str | os.PathLike[str] | None = None) -> Iterator[Path]:
    """A temporary path beside `path` to write to; renamed onto it, flushed to disk, when the block ends well.

    Whatever kills the process, readers see the old file or the new one, never a part. When the block raises, the
    temporary file is removed and `path` stays as it was. With `previous`, the old file is renamed to that first, and a
    kill between the two leaves it there alone.

    Raises:
        OSError: The storage is full, read-only or gone. Only the folder of `path` itself is made where it is missing:
            the tree of a run that was moved away is not begun anew.
    """
    path = Path(path)
    path.parent.mkdir(exist_ok=True)
    # The suffix stays last: writers that look at it (matplotlib, numpy) behave as for the real name.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        if previous is not None:
            with suppress(FileNotFoundError):
                os.replace(path, previous)
        os.replace(temporary, path)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # a write to a full disk does not say where
        with suppress(OSError):  # whatever keeps it there, the first error is the one to tell
            temporary.unlink()
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself
    finally:
        os.close(folder)


def atomic_write_bytes(
    path: str | os.PathLike[str], content: bytes, *, previous: str | os.PathLike[str] | None = None
) -> None:
    """Replace the file at `path` with `content`, as `atomic_path` does."""
    with atomic_path(path, previous=previous) as temporary:
        temporary.write_bytes(content)


def atomic_write_text(path: str | os.PathLike[str], text: str) -> None:
    """Replace the file at `path` with `text` (UTF-8), as `atomic_path` does."""
    atomic_write_bytes(path, text.encode())


def abandoned_temporaries(folder: Path) -> list[Path]:
    """The temporaries of `atomic_path` directly in `folder`: while nobody writes there, those that killed writers left.

    Raises:
        OSError: The folder cannot be read.
    """
    return sorted(path for path in folder.iterdir() if re.fullmatch(r"\..+\.\d+(\.[^.]+)?", path.name))
