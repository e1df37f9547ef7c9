"""Where a run folder is, and where results may go: on disk, or on an object store."""

from __future__ import annotations

import os

from lsmha.io.atomic import abandoned_temporaries
from lsmha.io.paths import RunPath, is_remote, path_of
from orchestrator.errors import UserError
from orchestrator.run_folder.lease import store_time
from orchestrator.run_folder.ownership import OWNER_FILE


def location(text: str, *, field: str = "RUN") -> RunPath:
    """The folder or file that an argument names; `field` names the argument in messages.

    Raises:
        UserError: It names a store that is not known, whose package is not installed, or no folder in it.
    """
    try:
        path = path_of(text)
    except ValueError as error:
        raise UserError(f"{field}: {error}") from None
    if is_remote(path) and path.protocol == "hf":
        raise UserError(f"{field}: must be on disk or in a bucket, but got {text!r}: only data can be on the hub")
    if is_remote(path) and (not path.name or set(text) & set("*?[]")):
        # fsspec takes such names for patterns here and there.
        raise UserError(f"{field}: must name a bucket and a folder in it, without any of * ? [ ], but got {text!r}")
    return path


def check_output_folder(folder: RunPath) -> None:
    """Refuse a folder for results that is something else, or cannot be written.

    Raises:
        UserError: It is.
    """
    if is_remote(folder):
        try:
            store_time(folder)
        except OSError as error:
            raise UserError(f"--out: {folder} cannot be written: {error.strerror}") from None
        return
    try:
        existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
        usable = existing.is_dir() and os.access(str(existing), os.W_OK)
    except OSError:  # a name that no file system takes
        usable = False
    if not usable:
        raise UserError(f"--out: must be a folder that can be written, but got {str(folder)!r}")


def check_new_folder(folder: RunPath) -> None:
    """Refuse a folder for a new run that holds something, or cannot be written.

    Raises:
        UserError: It does.
    """
    if is_remote(folder):
        check_output_folder(folder)  # first: a store that does not answer says nothing of what it holds
    # A session that was killed as it began has left no more than these.
    if folder.is_file() or (
        folder.is_dir() and set(folder.iterdir()) - {folder / OWNER_FILE, *abandoned_temporaries(folder)}
    ):
        raise UserError(f"--out: must be a new or empty folder, or that of a run, but {str(folder)!r} is neither")
    if not is_remote(folder):
        check_output_folder(folder)
