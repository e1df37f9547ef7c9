"""Settings from command-line options."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import ValidationError

from lsmha.config import Config, ModelConfig
from lsmha.models import VARIANTS
from orchestrator.errors import UserError, describe_validation_error

Settings = TypeVar("Settings", bound=Config)


def variant_config(name: str) -> ModelConfig:
    """A published variant by name.

    Raises:
        UserError: There is none of that name.
    """
    if name not in VARIANTS:
        raise UserError(f"VARIANT: must be one of {', '.join(sorted(VARIANTS))}, but got {name!r}")
    return VARIANTS[name]


def validated(kind: type[Settings], content: dict[str, Any], *, prefix: str = "") -> Settings:
    """The settings in `content`; `prefix` is the section that a message names.

    Raises:
        UserError: They are not valid.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise UserError(describe_validation_error(error, prefix=prefix)) from None
