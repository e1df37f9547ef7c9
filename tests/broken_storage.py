"""File systems that are mounted for a test, and filled."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def mount(*arguments: str | Path) -> None:
    """Mount something; skips the test where that is not permitted (it takes root, or CAP_SYS_ADMIN)."""
    try:
        subprocess.run(["mount", *arguments], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no file system can be mounted here: {error}")


@contextmanager
def mounted(folder: Path, *arguments: str | Path) -> Iterator[None]:
    """Something is mounted on the folder for the block."""
    mount(*arguments, folder)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def fill(filler: Path) -> None:
    """Write a file of up to 40 MB that takes all room there is, of which there must be less."""
    # Unbuffered, so that the last pages are taken too.
    with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        file.writelines([bytes(4096)] * 10_000)
