"""Settings validated, and what is wrong with them in one line."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import ValidationError

from lsmha.config import Config
from orchestrator.config.sweep import DIMENSION_FORMS, RENAMED_SETTINGS
from orchestrator.errors import UserError

Settings = TypeVar("Settings", bound=Config)

_SCALAR_TAGS = ("bool", "int", "float", "str")  # where none fits, pydantic has a problem with each kind of value
_WORDS = {
    "model_type": "must be a mapping of settings",
    "dict_type": "must be a mapping",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
}


def validated(kind: type[Settings], content: dict[str, Any], *, prefix: str = "") -> Settings:
    """The settings in `content`; `prefix` is the section that a message names.

    Raises:
        UserError: They are not valid.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise UserError(describe_validation_error(error, prefix=prefix)) from None


def describe_validation_error(error: ValidationError, *, prefix: str = "") -> str:
    """The first problem of a pydantic error as one line: `field: what is allowed, but got value`."""
    problems = error.errors(include_url=False)
    first = problems[0]
    parts, message = first["loc"], first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        today = RENAMED_SETTINGS.get(".".join(filter(None, (prefix, *map(str, parts)))))
        message = "unknown key" if today is None else f"is called {today} since version 0.2"
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
        words = [
            problem["ctx"]["expected"]
            for problem in siblings
            if problem["type"] == "literal_error" and problem is not first
        ]
        if words:
            parts, message = parts[:-1], f"{message}, or {words[0]}"
        message = f"{message}, but got {_shown(first['input'])}"
    location = ".".join(str(part) or "''" for part in parts if part not in (*DIMENSION_FORMS, "[key]"))
    field = ".".join(part for part in (prefix, location) if part)
    others = {problem["loc"][:2] for problem in problems} - {parts[:2], parts[:1]}
    more = f" (and {len(others)} more)" if others else ""
    return " ".join(f"{field}: {message}{more}".removeprefix(": ").split())


def shortened(text: str, limit: int = 60) -> str:
    """The text, or its beginning if it is longer than `limit`."""
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _shown(value: object) -> str:
    return "null" if value is None else shortened(repr(value))
