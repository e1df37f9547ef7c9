"""What can go wrong, and by which exit code a command says so.

LsmhaError (lsmha.errors)   foreseen, in one line
├── ...                         what the library foresees: data, divergence, memory, damaged files
└── SweepError                  ends the command
    ├── UserError                   exit code 2: bad input, nothing written
    └── StorageError                exit code 3: the run folder is full, read-only or gone
Interrupted                 exit code 130, 143 or 129: SIGINT, SIGTERM or SIGHUP

A lost cluster ends the process by exit code 4, without an exception (`cluster.loss`). Of a training run, an analysis or
any other work of a worker, `failures.failure_of` tells what was foreseen from what is a fault of the program.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from enum import IntEnum

from lsmha.errors import LsmhaError


class ExitCode(IntEnum):
    """How a command ends; with a signal it is 128 and the signal's number, as in a shell."""

    COMPLETE = 0
    """What was asked for is done; trials that failed are counted and named."""
    NO_RESULT = 1
    """Done, but every trial, every finalist, an analysis or the committees failed."""
    BAD_INPUT = 2
    STORAGE = 3
    CLUSTER_LOST = 4


class SweepError(LsmhaError):
    """Ends the command: the message is one line, and `exit_code` what the process ends with."""

    exit_code: ExitCode

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.splitlines()))


class UserError(SweepError, ValueError):
    """Bad input: the message names field, value and what is allowed."""

    exit_code = ExitCode.BAD_INPUT


class StorageError(SweepError):
    """The run folder cannot be written or read."""

    exit_code = ExitCode.STORAGE


class Interrupted(BaseException):
    """A signal asked the sweep to end; `exit_code` is the shell's code for it.

    No `Exception`, as `KeyboardInterrupt` is none: libraries that clean up after an error, and wait for a cluster that
    the same signal may have ended, let it pass.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.exit_code = 128 + signal_number


def print_error(message: str) -> None:
    """The one line on standard error that ends a command."""
    print(f"error: {message}", file=sys.stderr, flush=True)


def report_failures(failures: Sequence[str]) -> ExitCode:
    """Print each failure on standard error, whatever was asked to be quiet, and return the exit code."""
    for failure in failures:
        print_error(failure)
    return ExitCode.NO_RESULT if failures else ExitCode.COMPLETE
