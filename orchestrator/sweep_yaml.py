"""A sweep's settings as YAML: read, with overrides, and written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from orchestrator.errors import UserError, describe_validation_error
from orchestrator.sweep_config import DATA_DEFINED, SweepConfig


def load_sweep_config(path: Path, overrides: list[str] | None = None) -> SweepConfig:
    """Read and validate a sweep's YAML (1.2: `1e-3` is a number, `on` a string, duplicate keys an error).

    Args:
        path: The file.
        overrides: `a.b=value` settings, values in YAML, applied over the file.

    Raises:
        UserError: The file cannot be read or is not a valid sweep.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UserError(f"SPACE.yaml: {path} cannot be read: {reason}") from None
    content = _parse_yaml(text, source=str(path))
    if not isinstance(content, dict):
        raise UserError(f"{path}: must be a mapping with keys such as name, data and space")
    for override in overrides or []:
        apply_override(content, override)
    try:
        return SweepConfig.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{path}: {describe_validation_error(error)}") from None


def dump_yaml(config: SweepConfig, path: Path) -> None:
    """Write the resolved configuration so that `load_sweep_config` reads the same one."""
    content = config.model_dump(mode="json")
    for name in DATA_DEFINED:
        content["model"].pop(name)
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    with path.open("w", encoding="utf-8") as file:
        yaml.dump(content, file)


def _parse_yaml(text: str, *, source: str) -> Any:
    if any(token in text for token in ("&", "*")) and _has_alias(text):
        raise UserError(f"{source}: aliases are not allowed")
    try:
        return YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        problem = getattr(error, "problem", None) or "not valid YAML"
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UserError(" ".join(f"{source}: {problem}{where}".split())) from None


def _has_alias(text: str) -> bool:
    from ruamel.yaml.events import AliasEvent

    try:
        return any(isinstance(event, AliasEvent) for event in YAML(typ="safe", pure=True).parse(text))
    except YAMLError:
        return False  # the loader says what is wrong


def apply_override(content: dict[str, Any], override: str) -> None:
    """Set one `a.b=value` (the value in YAML) in nested mappings.

    Raises:
        UserError: It does not read so, or `a` is not a section.
    """
    dotted, separator, text = override.partition("=")
    keys = dotted.split(".")
    if not separator or not all(keys):
        raise UserError(f"--set: must read a.b=value, but got {override!r}")
    section: Any = content
    for key in keys[:-1]:
        section = section.setdefault(key, {})
        if not isinstance(section, dict):
            raise UserError(f"--set {override}: {key} is a single value, not a section")
    section[keys[-1]] = _parse_yaml(text, source=f"--set {override}")
