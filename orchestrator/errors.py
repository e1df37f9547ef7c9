"""What ends a command early: bad input, said in one line, or a signal."""

from __future__ import annotations

import signal

from pydantic import ValidationError

_DIMENSION_TAGS = ("choices", "integers", "numbers")  # pydantic puts the form of a `space` entry into the location


class UserError(ValueError):
    """Bad input: the message is one line that names field, value and what is allowed. The CLI exits with code 2."""


class Interrupted(BaseException):
    """A signal asked the sweep to end; `exit_code` is the shell's code for it.

    No `Exception`, as `KeyboardInterrupt` is none: libraries that clean up after an error, and wait for a cluster that
    the same signal may have ended, let it pass.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.exit_code = 128 + signal_number


def describe_validation_error(error: ValidationError, *, prefix: str = "") -> str:
    """The first problem of a pydantic error as one line: `field: what is allowed, but got value`."""
    problems = error.errors(include_url=False)
    first = problems[0]
    location = ".".join(str(part) for part in first["loc"] if part not in _DIMENSION_TAGS)
    field = ".".join(part for part in (prefix, location) if part)
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = "unknown key"
    elif first["type"] == "missing":
        message = "required, but not given"
    elif "but got" not in message:
        message = f"{message[:1].lower()}{message[1:]}, but got {_short(first['input'])}"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 and len({p["loc"][:2] for p in problems}) > 1 else ""
    return " ".join(f"{field}: {message}{more}".removeprefix(": ").split())


def _short(value: object, limit: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
