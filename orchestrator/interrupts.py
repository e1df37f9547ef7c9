"""SIGINT, SIGTERM and SIGHUP: an exception in the main thread, and a way out when that thread is stuck."""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType

from orchestrator.errors import Interrupted
from orchestrator.process_exit import end_at_once, end_process

_deferred: list[int] | None = None
"""Signals that wait for the end of an `defer_interrupts` block; None outside of one."""


@contextmanager
def interrupts_as_exceptions(
    *, when_stuck: Callable[[Interrupted], None] = lambda _: None, grace_s: float = 10
) -> Iterator[None]:
    """Turn SIGINT, SIGTERM and SIGHUP into `Interrupted`, so that all unwind through the same clean-up.

    SIGHUP, which comes when a terminal is closed, stays ignored where `nohup` has it so.

    Ray's compiled code may wait for a cluster that has gone for minutes, where Python can raise nothing. So a process
    that still lives `grace_s` seconds after the signal calls `when_stuck` in another thread and exits. A second signal
    ends it at once: what is recorded is whole, and a training run goes on from its last epoch.
    """
    if threading.current_thread() is not threading.main_thread():  # which alone gets signals
        yield
        return
    received: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        if _is_told_again(number, received):
            return
        received.append(number)
        if _deferred is None:
            raise Interrupted(number)
        _deferred.append(number)

    heard = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        heard.append(signal.SIGHUP)
    previous = {number: signal.signal(number, interrupt) for number in heard}
    # The interpreter writes a signal's number to this pipe at once, whatever the main thread is doing.
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    previous_writer = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    threading.Thread(target=_watch, args=(reader, heard, when_stuck, grace_s), name="interrupts", daemon=True).start()
    try:
        yield
    except BaseException:
        if received:
            # Whatever it is by now: raised inside Ray's compiled code, it can come out as a SystemError.
            raise Interrupted(received[0]) from None
        raise
    finally:
        signal.set_wakeup_fd(previous_writer)
        os.close(writer)
        for number, handler in previous.items():
            signal.signal(number, handler)


def _watch(reader: int, heard: Collection[int], when_stuck: Callable[[Interrupted], None], grace_s: float) -> None:
    """Read signals from the pipe until its other end is closed; end the process `grace_s` after the first one, or at
    once with the second."""
    received: list[int] = []
    deadline = None
    while True:
        left = None if deadline is None else max(0, deadline - time.monotonic())
        if not select.select([reader], [], [], left)[0]:
            interrupted = Interrupted(received[0])
            end_process(interrupted.exit_code, last_work=partial(when_stuck, interrupted))
        numbers = os.read(reader, 64)
        if not numbers:
            break
        for number in numbers:
            if number in heard and not _is_told_again(number, received):
                received.append(number)
        if len(received) > 1:
            end_at_once(128 + received[-1])
        if received and deadline is None:
            deadline = time.monotonic() + grace_s
    os.close(reader)


def _is_told_again(number: int, received: Collection[int]) -> bool:
    """Shell and kernel both tell of a closed terminal: that is one signal."""
    return number == signal.SIGHUP and bool(received)


@contextmanager
def defer_interrupts() -> Iterator[None]:
    """Have `Interrupted` raised behind the block instead of within it: what the block does is done whole.

    Only the main thread can be interrupted: in another one this changes nothing. A process that is stuck in the block
    ends as it does elsewhere.
    """
    global _deferred
    if threading.current_thread() is not threading.main_thread() or _deferred is not None:
        yield
        return
    waiting = _deferred = []
    try:
        yield
    finally:
        _deferred = None
        if waiting:
            raise Interrupted(waiting[0])
