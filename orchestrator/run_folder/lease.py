"""Owning a run folder on an object store, which knows no locks: a file that its owner renews."""

from __future__ import annotations

import errno
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from orchestrator.errors import UserError

if TYPE_CHECKING:
    from lsmha.io.object_store import ObjectPath

RENEW_S = 20.0
"""How often an owner renews its lease."""

LEASE_S = 90.0
"""A lease that was not renewed for so long is over: four renewals in a row have failed."""

SETTLE_S = 2.0
"""After it took over, an owner waits for so long whether another one did, too."""


class Lease:
    """A lease on a run folder by its `owner.json`, which says who has it.

    The store creates the file for one of all that ask at once. A lease is over when its process is known to be gone
    (on the same machine), or when it was not renewed for `LEASE_S` by the store's clock: those of hosts differ. Whoever
    finds one that is over deletes it and creates its own.

    What remains: deleting is not conditional. A contender that stalls between its last look at the old lease and
    deleting it, for longer than another one needs to take over and settle, deletes the other one's, and an owner that
    stalls as it renews, for longer than its lease, overwrites its successor's. Each owner looks before it renews, so
    two owners know of each other within `RENEW_S`, and one of them ends. What both recorded until then is the same:
    records are of the same work, and written whole.
    """

    def __init__(self, file: ObjectPath) -> None:
        self._file = file
        self._token = uuid4().hex
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._renewed = _now()
        self.lost: str | None = None
        """Why this process does not own the folder any more; None while it does."""

    @contextmanager
    def held(self) -> Iterator[None]:
        """Own the folder of the file for the block.

        Raises:
            UserError: A live process owns it.
            OSError: The store cannot be read or written; with ESTALE, out of the middle of the block, another process
                has taken over, or may have, since the lease could not be renewed.
        """
        self.take()
        with _raised_here(self.error) as raise_here:
            threading.Thread(target=self.keep, args=[raise_here], name="lease", daemon=True).start()
            try:
                yield
            except Exception:
                if self.lost:
                    # Whatever it is by now: raised inside Ray's compiled code, it can come out as a SystemError.
                    raise self.error() from None
                raise
            finally:
                self.release()

    def is_held(self) -> bool:
        """Whether a live process has the lease, as far as can be told without writing."""
        try:
            holder = _holder(self._file)
            return (
                holder is not None and not _is_gone(holder) and _age_s(self._file, datetime.now(timezone.utc)) < LEASE_S
            )
        except FileNotFoundError:
            return False

    def refusal(self) -> str:
        """Why the folder cannot be had, in one line."""
        return (
            f"{self._file.parent}: in use by {_name(_holder(self._file))}; one process at a time may work on a run "
            f"(if it was killed, the run is free {LEASE_S:g} s later)"
        )

    def take(self) -> None:
        """Take the lease.

        Raises:
            UserError: A live process has it.
            OSError: The store cannot be read or written.
        """
        took_over = False
        for _ in range(10):
            self._renewed = _now()
            if self._file.create(self._content()):
                if not took_over:
                    return
                time.sleep(SETTLE_S)
                if _token(_holder(self._file)) == self._token:
                    return
                continue
            holder = _holder(self._file)
            if holder is None:  # it has gone meanwhile
                continue
            try:
                if not _is_gone(holder) and _age_s(self._file, store_time(self._file.parent)) < LEASE_S:
                    break
            except FileNotFoundError:
                continue
            if _holder(self._file) == holder:
                self._file.unlink(missing_ok=True)
                took_over = True
        raise UserError(self.refusal())

    def renew(self) -> None:
        """Renew the lease if this process still has it; else say so in `lost`."""
        with self._lock:
            if self._ended.is_set() or self.lost:
                return
            started = _now()
            holder = _holder(self._file)
            if _token(holder) != self._token:
                self.lost = "the lease on the run is gone" if holder is None else f"taken over by {_name(holder)}"
                return
            self._file.write_bytes(self._content())
            self._renewed = started

    def keep(self, on_lost: Callable[[], None]) -> None:
        """Renew the lease until it is released or lost; for a thread of its own."""
        while not self._ended.wait(RENEW_S):
            try:
                self.renew()
            except OSError as error:
                if _now() - self._renewed > LEASE_S:
                    self.lost = f"the lease on the run could not be renewed for {LEASE_S:g} s: {error.strerror}"
            if self.lost:
                on_lost()
                return

    def check(self) -> None:
        """Raise OSError (ESTALE) if this process does not own the folder any more."""
        if self.lost is None and _now() - self._renewed > LEASE_S:
            self.renew()  # the machine was asleep, maybe
        if self.lost is not None:
            raise self.error()

    def error(self) -> OSError:
        """What to raise once the lease is lost."""
        return OSError(errno.ESTALE, self.lost, str(self._file))

    def release(self) -> None:
        """Give the lease back, if this process still has it."""
        # A store that does not answer must not keep the process: the lease is then over in its time.
        releasing = threading.Thread(target=self._release, daemon=True)
        releasing.start()
        releasing.join(10)

    def _release(self) -> None:
        self._ended.set()
        with self._lock, suppress(OSError):
            if _token(_holder(self._file)) == self._token:
                self._file.unlink(missing_ok=True)

    def _content(self) -> bytes:
        owner = {
            "host": os.uname().nodename,
            "pid": os.getpid(),
            "machine": _machine(),
            "started": _start_time(os.getpid()),
            "token": self._token,
            "renewed": time.time(),
        }
        return json.dumps(owner).encode()


@contextmanager
def _raised_here(error: Callable[[], Exception]) -> Iterator[Callable[[], None]]:
    """Yields what another thread calls to raise that error in the middle of the block, by SIGUSR1; it does nothing when
    the block has ended, or where it is not in the main thread, which alone gets signals."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    main, lock, ended = threading.get_ident(), threading.Lock(), threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        raise error()

    def raise_here() -> None:
        with lock:
            if not ended.is_set():
                signal.pthread_kill(main, signal.SIGUSR1)

    previous = signal.signal(signal.SIGUSR1, stop)
    try:
        yield raise_here
    finally:
        with lock:  # or the signal would end the process
            ended.set()
        signal.signal(signal.SIGUSR1, previous)


def store_time(folder: ObjectPath) -> datetime:
    """The time by the store's clock. Writes and removes a file to learn it: so the folder can be written.

    Raises:
        OSError: It cannot.
    """
    # Named as a temporary: where this process is killed, the next owner removes it.
    probe = folder / f".probe.{uuid4().int}"
    probe.write_bytes(b"")
    try:
        return probe.modified()
    finally:
        probe.unlink(missing_ok=True)


def _holder(file: ObjectPath) -> dict[str, Any] | None:
    """Who has the lease: what its file says, nothing where that cannot be read; None where there is no file."""
    try:
        holder = json.loads(file.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}


def _token(holder: dict[str, Any] | None) -> str | None:
    return (holder or {}).get("token")


def _name(holder: dict[str, Any] | None) -> str:
    if holder and {"pid", "host"} <= holder.keys():
        return f"process {holder['pid']} on {holder['host']}"
    return "another process"


def _is_gone(holder: dict[str, Any]) -> bool:
    """Whether the holder ran on this machine, where it can be looked up, and does no more."""
    if holder.get("machine") is None or holder["machine"] != _machine():
        return False
    return holder.get("started") != _start_time(holder.get("pid"))


def _age_s(file: ObjectPath, now: datetime) -> float:
    return (now - file.modified()).total_seconds()


def _machine() -> str | None:
    """Tells machines apart, the times since they booted, and containers: in each, process ids are others."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _start_time(process: Any) -> str | None:
    """When a live process began, in ticks since the machine booted: its id may be used again."""
    try:
        # The name, in parentheses, may hold anything.
        fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def _now() -> float:
    """Seconds that go on while the machine is asleep."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
