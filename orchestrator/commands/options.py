"""Settings from command-line options."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from pydantic import ValidationError

from lsmha.config import Config, ModelConfig
from lsmha.devices.hardware import default_device
from lsmha.models import VARIANTS
from orchestrator.errors import UserError, describe_validation_error

Settings = TypeVar("Settings", bound=Config)


def variant_config(name: str, *, field: str = "VARIANT") -> ModelConfig:
    """A published variant by name; `field` is what a message calls it.

    Raises:
        UserError: There is none of that name.
    """
    if name not in VARIANTS:
        raise UserError(f"{field}: must be one of {', '.join(sorted(VARIANTS))}, but got {name!r}")
    return VARIANTS[name]


def torch_device(name: str) -> torch.device:
    """The device that --device names: `cpu`, `cuda`, or `auto` for the GPU where there is one.

    Raises:
        UserError: It is none of these, or this machine has no GPU.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device: must be auto, cpu or cuda, but got {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device: must be cpu or auto on a machine without a GPU, but got 'cuda'")
    return default_device() if name == "auto" else torch.device(name)


def validated(kind: type[Settings], content: dict[str, Any], *, prefix: str = "") -> Settings:
    """The settings in `content`; `prefix` is the section that a message names.

    Raises:
        UserError: They are not valid.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise UserError(describe_validation_error(error, prefix=prefix)) from None
