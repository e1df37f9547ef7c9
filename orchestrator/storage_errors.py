"""Storage that is full, read-only or gone: told from other errors, and said in one line."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from orchestrator.errors import StorageError

_STORAGE_ERRNOS = frozenset(
    {
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EFBIG,
        errno.EROFS,
        errno.EACCES,
        errno.EPERM,
        errno.EIO,
        errno.ENOENT,
        errno.ENOTDIR,
        errno.ESTALE,
        errno.ENOTCONN,  # a network mount whose server went away
    }
)

_STORE_CLIENTS = ("botocore", "aiobotocore", "gcsfs")
"""Packages of whose errors those are that Ray Train meets in an object store; our own files' are `OSError`."""


def storage_error_in(error: BaseException | None) -> OSError | None:
    """The storage's error behind `error`, also where it came through Ray; None when it is of another kind."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _STORAGE_ERRNOS:
            return error
        if type(error).__module__.partition(".")[0] in _STORE_CLIENTS:
            return OSError(errno.EIO, " ".join(str(error).split()) or type(error).__name__)
        error = getattr(error, "cause", None) or error.__cause__
    return None


def describe_storage_error(error: OSError) -> str:
    """The error in the system's words, with the file where it tells one."""
    words = error.strerror or str(error)
    return f"{error.filename}: {words}" if error.filename else words


@contextmanager
def translate_storage_errors(advice: str) -> Iterator[None]:
    """Turn the storage's errors in the block, those that came through Ray too, into `StorageError` with some advice."""
    try:
        yield
    except Exception as error:
        storage_error = storage_error_in(error)
        if storage_error is None:
            raise
        raise StorageError(f"{describe_storage_error(storage_error)}; {advice}") from None
