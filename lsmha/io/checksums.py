"""Files that carry their own SHA-256: damage is refused by name instead of believed."""

from __future__ import annotations

import hashlib
import re

from lsmha.errors import DamagedFileError
from lsmha.io.atomic import atomic_write_bytes
from lsmha.io.paths import RunPath

CHECKSUM_PLACEHOLDER = "lsmha-sha256:" + 64 * "0"
"""Stands in a file's content for its checksum, which takes its place when the content is written."""

_CHECKSUM = re.compile(rb"lsmha-sha256:[0-9a-f]{64}")


def write_checked(path: RunPath, content: bytes, *, previous: RunPath | None = None) -> None:
    """Replace the file at `path` with `content`, where the checksum takes its placeholder's place, atomically.

    The file that it replaces stays at `previous`, where that is given.

    Raises:
        ValueError: `content` does not hold `CHECKSUM_PLACEHOLDER`, or more than one text that could be a checksum.
    """
    found = list(_CHECKSUM.finditer(content))
    if [match.group() for match in found] != [CHECKSUM_PLACEHOLDER.encode()]:
        raise ValueError(f"content of {path} must hold one place for its checksum, but has {len(found)} or is filled")
    start, end = found[0].span()
    filled = content[:start] + _checksum(content, start, end) + content[end:]
    atomic_write_bytes(path, filled, previous=previous)


def read_checked(path: RunPath, *, required: bool = True) -> bytes:
    """The content of a file of `write_checked`, its checksum included.

    Raises:
        DamagedFileError: It is not what was written, or, where a checksum is `required`, never had one. Files that were
            written by other means have none.
    """
    return checked(path.read_bytes(), path, required=required)


def checked(content: bytes, path: RunPath, *, required: bool = True) -> bytes:
    """The content that was read from `path`, if it is intact.

    Raises:
        DamagedFileError: As for `read_checked`.
    """
    intact = _is_intact(content)
    if intact is False or (required and intact is None):
        raise DamagedFileError(f"{path} is damaged: its SHA-256 is not the one that it was written with")
    return content


def _is_intact(content: bytes) -> bool | None:
    """Whether the content fits its checksum; None where it has none."""
    found = _CHECKSUM.search(content)
    return None if found is None else found.group() == _checksum(content, *found.span())


def _checksum(content: bytes, start: int, end: int) -> bytes:
    """The checksum of a content, of which the place from `start` to `end` is the checksum's own."""
    view = memoryview(content)
    digest = hashlib.sha256(view[:start])
    digest.update(CHECKSUM_PLACEHOLDER.encode())
    digest.update(view[end:])
    return b"lsmha-sha256:" + digest.hexdigest().encode()
