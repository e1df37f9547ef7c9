"""Runs that revision e2932e9, the last before version 0.2, wrote: what is in users' folders must stay readable."""

from __future__ import annotations

import sys
import tarfile
from pathlib import Path
from typing import Literal

from repository import FIXTURES


def old_run(name: Literal["complete", "broken-off"], folder: Path) -> Path:
    """Unpack a run into a folder, and return its own.

    Both search seven trials on `digits`, some with a learning rate that diverges. `complete` has four finalist runs,
    analyses, committees and pruned networks; `broken-off` was interrupted in its first batch, and has checkpoints of
    t0000 and t0002.
    """
    with tarfile.open(FIXTURES / "runs-of-e2932e9.tar.xz") as archive:
        members = [member for member in archive.getmembers() if member.name.split("/")[0] == name]
        # Python 3.10 and 3.11 have filters from their later patch releases on only; the archive is our own.
        safely = {"filter": "data"} if sys.version_info >= (3, 12) else {}
        archive.extractall(folder, members, **safely)
    return folder / name
