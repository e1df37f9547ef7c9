"""What went wrong, in one line: a user's bad input, or an error that came through Ray."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pydantic import ValidationError

_DIMENSION_TAGS = ("choices", "integers", "numbers")  # pydantic puts the form of a `space` entry into the location
_SCALAR_TAGS = ("bool", "int", "float", "str")  # and, where none of them fits, each kind of single value
_WORDS = {
    "model_type": "must be a mapping of settings",
    "dict_type": "must be a mapping",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
}


class UserError(ValueError):
    """Bad input: the message is one line that names field, value and what is allowed. The CLI exits with code 2."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.splitlines()))


def print_error(message: str) -> None:
    """The one line on standard error that ends a command."""
    print(f"error: {message}", file=sys.stderr, flush=True)


def describe_validation_error(error: ValidationError, *, prefix: str = "") -> str:
    """The first problem of a pydantic error as one line: `field: what is allowed, but got value`."""
    problems = error.errors(include_url=False)
    first = problems[0]
    parts, message = first["loc"], first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = "unknown key"
    elif first["type"] == "missing":
        message = "required, but not given"
    elif "but got" not in message:
        siblings = [problem for problem in problems if problem["loc"][:-1] == parts[:-1]]
        if len(siblings) > 1 and parts[-1] in _SCALAR_TAGS:
            parts, message = parts[:-1], "must be a finite number, a word, true or false"
        elif first["type"] == "too_short":
            message = f"must have at least {first['ctx']['min_length']} item(s)"
        else:
            message = _WORDS.get(first["type"], f"{message[:1].lower()}{message[1:]}")
        # A number or a word: pydantic has a problem with each of the two.
        words = [one["ctx"]["expected"] for one in siblings if one["type"] == "literal_error" and one is not first]
        if words:
            parts, message = parts[:-1], f"{message}, or {words[0]}"
        message = f"{message}, but got {_short(first['input'])}"
    location = ".".join(str(part) or "''" for part in parts if part not in (*_DIMENSION_TAGS, "[key]"))
    field = ".".join(part for part in (prefix, location) if part)
    others = {problem["loc"][:2] for problem in problems} - {parts[:2], parts[:1]}
    more = f" (and {len(others)} more)" if others else ""
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
    return "null" if value is None else shortened(repr(value), limit)


def shortened(text: str, limit: int = 60) -> str:
    """The text, or its beginning if it is longer than `limit`."""
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
