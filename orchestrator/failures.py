"""Why a piece of work of a worker has no result: what was foreseen, told from a fault of the program."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from typing import Literal

from lsmha.errors import ConfigurationError, DivergenceError, LsmhaError, MemoryShortageError

FailureKind = Literal["diverged", "memory", "configuration", "metrics", "latency", "files", "worker", "unexpected"]
"""Why a piece of work failed: its loss diverged, the memory was too small, settings and data do not fit together, a
metric was missing or not finite, its latency could not be measured, its files did not arrive in the run folder, its
worker was killed; or `unexpected`, which is a fault of the program or of the machine."""


@dataclass(frozen=True)
class Failure:
    """Why a piece of work has no result."""

    reason: str
    """One line."""
    kind: FailureKind
    traceback: str | None = None
    """Of what was unexpected."""


def failure_of(error: BaseException | None) -> Failure:
    """What an exception, raised here or in a worker, means for the piece of work that raised it."""
    cause = _cause_of(error)
    kind = _kind_of(cause)
    return Failure(describe_error(error), kind, _traceback_of(error) if kind == "unexpected" else None)


def _kind_of(error: BaseException | None) -> FailureKind:
    if isinstance(error, DivergenceError):
        return "diverged"
    # Those of torch and of Ray go by one name.
    if isinstance(error, MemoryShortageError | MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "memory"
    if isinstance(error, LsmhaError):
        return "configuration" if isinstance(error, ConfigurationError) else "files"
    # What Ray raises by itself, with nothing of ours behind it, is that a process or its node has gone.
    return "worker" if _is_of_ray(error) else "unexpected"


def _is_of_ray(error: BaseException | None) -> bool:
    return type(error).__module__.startswith("ray.")


def _traceback_of(error: BaseException | None) -> str | None:
    if error is None:
        return None
    remote: str | None = getattr(error, "traceback_str", None)
    return remote or "".join(traceback.format_exception(error))


def _cause_of(error: BaseException | None) -> BaseException | None:
    """What was raised first, in whatever process."""
    while error is not None and (cause := getattr(error, "cause", None)) is not None:
        error = cause
    return error


def describe_error(error: BaseException | None) -> str:
    """The cause of an error that came through Ray, in one line."""
    cause = _cause_of(error)
    if cause is None:
        return "unknown error"
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    # Ray tells of itself first; what happened stands in its last line. Others explain themselves after it.
    message = lines[-1 if _is_of_ray(cause) else 0] if lines else ""
    name = type(cause).__name__
    return message if message.startswith(name) else f"{name}: {message}".removesuffix(": ")
