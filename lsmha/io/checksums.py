"""Files that carry their own SHA-256: damage is refused by name instead of believed."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from lsmha.io.atomic import atomic_write_bytes

UNSEALED = "lsmha-sha256:" + 64 * "0"
"""Stands in a file's content for its seal, which takes its place when the content is written."""

_SEAL = re.compile(rb"lsmha-sha256:[0-9a-f]{64}")


class DamagedFileError(ValueError):
    """A file does not hold what was once written to it; the message names it."""


def write_sealed(path: Path, content: bytes, *, previous: Path | None = None) -> None:
    """Replace the file at `path` with `content`, where `UNSEALED` becomes the seal, atomically.

    The file that it replaces stays at `previous`, where that is given.

    Raises:
        ValueError: `content` does not hold `UNSEALED`, or more than one text that could be a seal.
    """
    found = list(_SEAL.finditer(content))
    if [match.group() for match in found] != [UNSEALED.encode()]:
        raise ValueError(f"content of {path} must hold one place for its seal, but has {len(found)} or is sealed")
    start, end = found[0].span()
    atomic_write_bytes(path, content[:start] + _seal(content, start, end) + content[end:], previous=previous)


def read_sealed(path: Path) -> bytes:
    """The content of a file of `write_sealed`, its seal included.

    Raises:
        DamagedFileError: It is not what was written, or never had a seal.
    """
    return sealed(path.read_bytes(), path)


def check_seal(path: Path) -> bytes:
    """Refuse a file that does not fit its seal; one without a seal, written by other means, passes.

    Returns what it holds.

    Raises:
        DamagedFileError: It is not what was written.
    """
    return sealed(path.read_bytes(), path, required=False)


def sealed(content: bytes, path: Path, *, required: bool = True) -> bytes:
    """The content that was read from `path`, if it is intact.

    Raises:
        DamagedFileError: It is not what was written, or, where one is `required`, never had a seal.
    """
    intact = _is_intact(content)
    if intact is False or (required and intact is None):
        raise DamagedFileError(f"{path} is damaged: its SHA-256 is not the one that it was written with")
    return content


def _is_intact(content: bytes) -> bool | None:
    """Whether the content fits its seal; None where it has none."""
    found = _SEAL.search(content)
    return None if found is None else found.group() == _seal(content, *found.span())


def _seal(content: bytes, start: int, end: int) -> bytes:
    """The seal of a content, whose place is from `start` to `end`."""
    view = memoryview(content)
    digest = hashlib.sha256(view[:start])
    digest.update(UNSEALED.encode())
    digest.update(view[end:])
    return b"lsmha-sha256:" + digest.hexdigest().encode()
