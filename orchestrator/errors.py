"""What went wrong, in one line: a user's bad input, or an error that came through Ray."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pydantic import ValidationError

_DIMENSION_TAGS = ("choices", "integers", "numbers")  # pydantic puts the form of a `space` entry into the location


class UserError(ValueError):
    """Bad input: the message is one line that names field, value and what is allowed. The CLI exits with code 2."""


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


def describe_error(error: BaseException | None) -> str:
    """The cause of an error that came through Ray, in one line."""
    while error is not None and (cause := getattr(error, "cause", None)) is not None:
        error = cause
    if error is None:
        return "unknown error"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # Ray prints a remote traceback first; what was raised stands in its last line.
    message = lines[-1] if lines else ""
    name = type(error).__name__
    return message if message.startswith(name) else f"{name}: {message}".removesuffix(": ")


def report_failures(failures: Sequence[str]) -> int:
    """Print each failure on standard error, whatever was asked to be quiet, and return the exit code: 1, or 0."""
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    return 1 if failures else 0


def _short(value: object, limit: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
