"""SIGINT and SIGTERM as an exception."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(BaseException):
    """A signal asked the sweep to end; `exit_code` is the shell's code for it.

    No `Exception`, as `KeyboardInterrupt` is none: libraries that clean up after an error, and wait for a cluster that
    the same signal may have ended, let it pass.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.exit_code = 128 + signal_number


@contextmanager
def interrupts_as_exceptions() -> Iterator[None]:
    """Turn SIGINT and SIGTERM into `Interrupted`, so that both unwind through the same clean-up."""
    received: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        received.append(number)
        raise Interrupted(number)

    previous = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except BaseException:
        if received:
            # Whatever it is by now: raised inside Ray's compiled code, it can come out as a SystemError.
            raise Interrupted(received[0]) from None
        raise
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
