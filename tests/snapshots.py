"""What is in a folder, to be compared with what is in it later."""

from __future__ import annotations

from pathlib import Path


def snapshot(folder: Path) -> dict[Path, bytes | None]:
    """The content of each file, and None for each folder, below a folder."""
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}
