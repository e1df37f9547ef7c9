"""One process at a time works on a run folder: by a lock on disk, by a lease on an object store."""

from __future__ import annotations

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

    def is_held(self) -> bool:
        """Whether a live process owns the folder, as far as can be told without writing."""

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
        descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if not _locked(descriptor):
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

    def is_held(self) -> bool:
        try:
            descriptor = os.open(self._file, os.O_RDWR)
        except OSError:
            return False
        try:
            return not _locked(descriptor, patience_s=0)
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


def has_owner(folder: RunPath) -> bool:
    """Whether a live process owns the folder."""
    return lock_of(folder).is_held()


def _locked(descriptor: int, *, patience_s: float = 0.5) -> bool:
    """Take the lock. With some patience: whoever looks whether it is held holds it for a moment."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.05)
        else:
            return True
