"""Where results may go."""

from __future__ import annotations

import os
from pathlib import Path

from lsmha.atomic import abandoned_temporaries
from lsmha.paths import is_remote
from orchestrator.errors import UserError
from orchestrator.lease import store_time
from orchestrator.ownership import OWNER_FILE


def check_output_folder(folder: Path) -> None:
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
        usable = existing.is_dir() and os.access(existing, os.W_OK)
    except OSError:  # a name that no file system takes
        usable = False
    if not usable:
        raise UserError(f"--out: must be a folder that can be written, but got {str(folder)!r}")


def check_new_folder(folder: Path) -> None:
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
