"""One process at a time works on a run folder: by a lock on disk, by a lease on an object store."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from lsmha.io.paths import RunPath, is_remote
from orchestrator.errors import UserError
from orchestrator.run_folder.lease import Lease

OWNER_FILE = "owner.json"
"""Names the owner, and carries the lock. It stays: removing it would race with the next owner. On an object store it is
the lease, and goes with it."""


class RunLock(Protocol):
    """What keeps other processes from a run folder. A dead owner holds nothing."""

    def held(self) -> AbstractContextManager[None]:
        """Own the folder for the block.

        Raises:
            UserError: A live process owns it.
            OSError: The folder cannot be read or written, or, out of the middle of the block, the lock was lost.
        """

    def check(self) -> None:
        """Raise OSError if this process owned the folder and does no more."""

    def release(self) -> None:
        """Leave nothing behind that would outlive this process, which is about to end without leaving the block."""

    def is_held(self) -> bool | None:
        """Whether a live process owns the folder; None where it cannot be told without writing."""

    def refusal(self) -> str:
        """Why the folder cannot be had, in one line."""


class FileLock:
    """A lock that the file system keeps for as long as the process lives, however it ends.

    NFS (from version 4), Lustre and the like keep it across machines; a file system without locks is refused.
    """

    def __init__(self, folder: RunPath) -> None:
        self._folder, self._file = folder, str(folder / OWNER_FILE)

    @contextmanager
    def held(self) -> Iterator[None]:
        is_new = not os.path.exists(self._file)
        descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                locked = _locked(descriptor)
            except _NoLocksError as error:
                if is_new:
                    os.unlink(self._file)
                raise UserError(f"{self._folder}: {error}; use another one, or a bucket") from None
            if not locked:
                raise UserError(self.refusal())
            os.ftruncate(descriptor, 0)
            os.write(descriptor, json.dumps({"host": os.uname().nodename, "pid": os.getpid()}).encode())
            yield
        finally:
            os.close(descriptor)

    def check(self) -> None:
        """Nothing takes such a lock away."""

    def release(self) -> None:
        """It ends with the process."""

    def is_held(self) -> bool | None:
        # Whoever may just read can still look: a shared lock asks for no more.
        try:
            descriptor = os.open(self._file, os.O_RDONLY)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            return None
        try:
            return not _locked(descriptor, shared=True, patience_s=0)
        except _NoLocksError:
            return None
        finally:
            os.close(descriptor)

    def refusal(self) -> str:
        try:
            with open(self._file, encoding="utf-8") as file:
                owner = json.load(file)
            who = f"process {owner['pid']} on {owner['host']}"
        except (OSError, ValueError, KeyError, TypeError):
            who = "another process"
        return f"{self._folder}: in use by {who}; one process at a time may work on a run"


_owned: dict[str, RunLock] = {}
"""Locks that this process holds, by folder."""


def lock_of(folder: RunPath) -> RunLock:
    """The lock that fits where the folder is."""
    return Lease(folder / OWNER_FILE) if is_remote(folder) else FileLock(folder)


@contextmanager
def owned(folder: RunPath) -> Iterator[None]:
    """Own a run folder for the block; raises what `RunLock.held` does."""
    lock = lock_of(folder)
    with lock.held():
        _owned[str(folder)] = lock
        try:
            yield
        finally:
            del _owned[str(folder)]


def give_up() -> None:
    """Release whatever this process owns: it is about to end without leaving its blocks."""
    for lock in list(_owned.values()):
        lock.release()


def check_owned(folder: RunPath) -> None:
    """Refuse to write into a run folder that was this process's own until another one took over; one that it has not
    owned passes.

    Raises:
        OSError: That has happened.
    """
    if (lock := _owned.get(str(folder))) is not None:
        lock.check()


def check_free(folder: RunPath) -> None:
    """Refuse a run folder that is in use, without writing anything.

    Raises:
        UserError: A live process owns it.
    """
    lock = lock_of(folder)
    if lock.is_held():
        raise UserError(lock.refusal())


def has_owner(folder: RunPath) -> bool | None:
    """Whether a live process owns the folder; None where that cannot be told."""
    return lock_of(folder).is_held()


class _NoLocksError(Exception):
    """A file system without locks: Lustre mounted without `flock`, NFS without its lock daemon."""


def _locked(descriptor: int, *, shared: bool = False, patience_s: float = 0.5) -> bool:
    """Take the lock. With some patience: whoever looks whether it is held holds it for a moment."""
    deadline = time.monotonic() + patience_s
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    while True:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
                raise _NoLocksError(f"its file system has no locks ({error.strerror})") from None
            if not isinstance(error, BlockingIOError):
                raise
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.05)
        else:
            return True
