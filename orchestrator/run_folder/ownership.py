"""One process at a time works on a run folder."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from lsmha.io.paths import RunPath, is_remote
from orchestrator.errors import UserError
from orchestrator.run_folder.lease import check_lease, is_leased, leased, refusal, release_all

OWNER_FILE = "owner.json"
"""Names the owner, and carries the lock. It stays: removing it would race with the next owner. On an object store it is
the lease, and goes with it."""


@contextmanager
def owned(folder: RunPath) -> Iterator[None]:
    """Own a run folder for the block.

    The file system keeps the lock for as long as this process lives, however it ends: a dead owner holds nothing. NFS
    (from version 4), Lustre and the like keep it across machines; a file system without locks is refused. An object
    store has no locks: there it is a lease that is renewed (`orchestrator.run_folder.lease`).

    Raises:
        UserError: A live process owns the folder.
        OSError: The folder cannot be written, or its lease was lost.
    """
    if is_remote(folder):
        with leased(folder / OWNER_FILE):
            yield
        return
    descriptor = os.open(str(folder / OWNER_FILE), os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if not _locked(descriptor):
            raise UserError(_refusal(folder))
        os.ftruncate(descriptor, 0)
        os.write(descriptor, json.dumps({"host": os.uname().nodename, "pid": os.getpid()}).encode())
        yield
    finally:
        os.close(descriptor)


def give_up() -> None:
    """Own nothing any more: for a process that is about to end without leaving its blocks. Locks end with it."""
    release_all()


def check_owned(folder: RunPath) -> None:
    """Refuse to write into a run folder that was this process's own until another one took over its lease.

    Raises:
        OSError: That has happened.
    """
    check_lease(folder)


def check_free(folder: RunPath) -> None:
    """Refuse a run folder that is in use, without writing anything.

    Raises:
        UserError: A live process owns it.
    """
    if has_owner(folder):
        raise UserError(_refusal(folder))


def has_owner(folder: RunPath) -> bool:
    """Whether a live process owns the folder."""
    if is_remote(folder):
        return is_leased(folder / OWNER_FILE)
    try:
        descriptor = os.open(str(folder / OWNER_FILE), os.O_RDWR)
    except OSError:
        return False
    try:
        return not _locked(descriptor, patience_s=0)
    finally:
        os.close(descriptor)


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


def _refusal(folder: RunPath) -> str:
    if is_remote(folder):
        return refusal(folder / OWNER_FILE)
    try:
        owner = json.loads((folder / OWNER_FILE).read_text(encoding="utf-8"))
        who = f"process {owner['pid']} on {owner['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        who = "another process"
    return f"{folder}: in use by {who}; one process at a time may work on a run"
