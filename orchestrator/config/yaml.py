"""A sweep's settings as YAML: read, with overrides, and written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    CollectionEndEvent,
    CollectionStartEvent,
    DocumentStartEvent,
    Event,
    NodeEvent,
    ScalarEvent,
)
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.reader import ReaderError

from lsmha.config import DATA_DEFINED
from lsmha.io.paths import RunPath
from orchestrator.config.sweep import SweepConfig
from orchestrator.config.validation import describe_validation_error, shortened
from orchestrator.errors import UserError

MAX_BYTES = 1_000_000
MAX_DEPTH = 20


def load_sweep_config(
    path: RunPath, overrides: list[str] | None = None, *, translate: Callable[[Any], Any] = lambda content: content
) -> SweepConfig:
    """Read and validate a sweep's YAML (1.2: `1e-3` is a number, `on` a string, duplicate keys an error).

    Of YAML's machinery (tags, aliases, directives, several documents) a sweep needs none, so all of it is refused.

    Args:
        path: The file.
        overrides: `a.b=value` settings, values in YAML, applied over the file.
        translate: Gives the file's content, nested plain values, in the words of today.

    Raises:
        UserError: The file cannot be read or is not a valid sweep.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
        text = raw.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UserError(f"SPACE.yaml: {path} cannot be read: {reason}") from None
    if len(raw) > MAX_BYTES:
        raise UserError(f"SPACE.yaml: {path} must be at most {MAX_BYTES:,} bytes long, but is longer")
    content = _parse_yaml(text, source=str(path))
    if not isinstance(content, dict):
        raise UserError(f"{path}: must be a mapping with keys such as name, data and space")
    content = translate(content)
    for override in overrides or []:
        apply_override(content, override)
    try:
        return SweepConfig.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{path}: {describe_validation_error(error)}") from None


def plain_settings(config: SweepConfig) -> dict[str, Any]:
    """The settings as plain values that `SweepConfig.model_validate` takes."""
    content = config.model_dump(mode="json")
    for name in DATA_DEFINED:
        content["model"].pop(name)
    return content


def dump_yaml(config: SweepConfig, path: Path) -> None:
    """Write the resolved configuration so that `load_sweep_config` reads the same one."""
    content = plain_settings(config)
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    with path.open("w", encoding="utf-8") as file:
        yaml.dump(content, file)


class _Constructor(SafeConstructor):
    """Dates are words, as in YAML 1.2, and whole numbers fit into 64 bits, lest one overflow in the middle of a run."""

    def construct_yaml_int(self, node: ScalarNode) -> int:
        # A number too long is not even converted: from thousands of digits on, Python refuses.
        if len(node.value) > 100 or not -(2**63) <= (value := super().construct_yaml_int(node)) < 2**63:
            problem = f"whole numbers must fit into 64 bits, but got {shortened(node.value)}"
            raise MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        return value


_Constructor.add_constructor("tag:yaml.org,2002:int", _Constructor.construct_yaml_int)
_Constructor.add_constructor("tag:yaml.org,2002:timestamp", _Constructor.construct_yaml_str)


def _parse_yaml(text: str, *, source: str) -> Any:
    yaml = YAML(typ="safe", pure=True)
    yaml.Constructor = _Constructor
    try:
        _check_plain(text)
        return yaml.load(text)
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise UserError(f"{source}: {error.reason}, but got {chr(error.character)!r} in line {line}") from None
    except YAMLError as error:
        # A duplicate key's values, named behind it, are still empty.
        problem = (getattr(error, "problem", None) or "not valid YAML").partition(" with value ")[0]
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UserError(" ".join(f"{source}: {problem}{where}".split())) from None


def _check_plain(text: str) -> None:
    """Refuse, before any of it is built, what the loader would expand, convert or descend into without bound.

    Raises:
        YAMLError: There is such a thing, or the text is not YAML.
    """
    documents = depth = 0
    for event in YAML(typ="safe", pure=True).parse(text):
        documents += isinstance(event, DocumentStartEvent)
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        if problem := _problem_of(event, documents=documents, depth=depth):
            raise MarkedYAMLError(problem=problem, problem_mark=event.start_mark)


def _problem_of(event: Event, *, documents: int, depth: int) -> str | None:
    if documents > 1:
        return "only one document is allowed, but another begins"
    if depth > MAX_DEPTH:
        return f"at most {MAX_DEPTH} levels of lists and mappings are allowed, but another begins"
    match event:
        case DocumentStartEvent() if event.version or event.tags:
            return "directives are not allowed, but one stands above the document"
        case AliasEvent():
            return f"aliases are not allowed, but got *{event.anchor}"
        case NodeEvent() if tag := getattr(event, "tag", None):
            return f"tags are not allowed, but got {tag}"
        case ScalarEvent() if "\0" in event.value:
            return f"words must not hold a NUL character, but got {shortened(repr(event.value))}"
    return None


def apply_override(content: dict[str, Any], override: str) -> None:
    """Set one `a.b=value` (the value in YAML) in nested mappings.

    Raises:
        UserError: It does not read so, or `a` is not a section.
    """
    dotted, separator, text = override.partition("=")
    keys = dotted.split(".")
    if not separator or not all(keys):
        raise UserError(f"--set: must read a.b=value, but got {shortened(repr(override))}")
    source = f"--set {shortened(override)}"
    section: Any = content
    for key in keys[:-1]:
        section = section.setdefault(key, {})
        if not isinstance(section, dict):
            raise UserError(f"{source}: {key} is a single value, not a section")
    section[keys[-1]] = _parse_yaml(text, source=source)
