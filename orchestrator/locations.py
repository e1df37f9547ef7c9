"""Where a user wants a run folder: on disk, or on an object store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lsmha.paths import is_remote, path_of
from orchestrator.errors import UserError


def location(text: str, *, field: str = "RUN") -> Path:
    """The folder or file that an argument names; `field` names the argument in messages.

    Raises:
        UserError: It names a store that is not known, whose package is not installed, or no folder in it.
    """
    try:
        path = path_of(text)
    except ValueError as error:
        raise UserError(f"{field}: {error}") from None
    if is_remote(path) and (not path.name or set(text) & set("*?[]")):
        # fsspec takes such names for patterns here and there.
        raise UserError(f"{field}: must name a bucket and a folder in it, without any of * ? [ ], but got {text!r}")
    return path


def train_storage(text: str) -> dict[str, Any]:
    """Ray Train's settings for the folder where it keeps what it needs."""
    path: Any = path_of(text)
    if not is_remote(path):
        return {"storage_path": text}
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    return {"storage_path": path.path, "storage_filesystem": PyFileSystem(FSSpecHandler(path.fs))}
