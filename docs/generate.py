"""Write what in the documentation follows from the code: `python docs/generate.py`; a test compares the two.

Generated parts stand between two comments, `<!-- modules -->` and `<!-- /modules -->`, say; the rest of such a file is
written by hand.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PACKAGES = ("lsmha", "orchestrator")
BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
KINDS = {"integer": "whole number", "number": "number", "string": "text", "object": "mapping", "null": "null"}
SAME_AS = {"pruning.readout": "analysis.readout", "finalists.resources": "resources"}
"""Sections with the settings of another one."""


# ---- docs/architecture.md: modules ------------------------------------------------------------------------------


def modules() -> str:
    """A table of modules for each package that has any, in the order of their names."""
    return "\n".join(_module_tables()).strip()


def _module_tables() -> Iterator[str]:
    for package in PACKAGES:
        folders = [
            ROOT / package,
            *sorted(path.parent for path in (ROOT / package).rglob("__init__.py") if path.parent != ROOT / package),
        ]
        for folder in folders:
            files = [file for file in sorted(folder.glob("*.py")) if file.name != "__init__.py"]
            yield f"\n### `{folder.relative_to(ROOT).as_posix()}/`\n"
            yield "| module | purpose |\n| --- | --- |"
            for file in files:
                link = f"[{file.name}](../{file.relative_to(ROOT).as_posix()})"
                documentation = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
                yield f"| {link} | {_cell(_first_sentence(documentation or ''))} |"


# ---- docs/settings.md: settings ---------------------------------------------------------------------------------


def settings() -> str:
    """A table of settings for each section of a sweep's YAML."""
    from orchestrator.config.sweep import sweep_schema  # here, because modules can be listed without pydantic

    schema = sweep_schema()
    top = {name: field for name, field in schema["properties"].items() if "$ref" not in field}
    parts = ["### Top level\n", _settings_table(top, required=schema["required"])]
    for name, field in schema["properties"].items():
        if "$ref" in field:
            parts += _section(name, field, schema["$defs"])
    return "\n".join(parts).strip()


def _section(name: str, field: dict[str, Any], definitions: dict[str, Any]) -> Iterator[str]:
    definition = definitions[_reference(field)]
    yield f"\n### `{name}`\n"
    yield _one_line(field.get("description") or definition.get("description", "")) + "\n"
    own, sections = {}, {}
    for key, value in definition["properties"].items():
        nested = _reference(value) is not None and f"{name}.{key}" not in SAME_AS
        (sections if nested else own)[key] = value
    if name == "model":
        own = {key: value for key, value in own.items() if key not in ("img_size", "in_channels", "num_classes")}
    yield _settings_table(own, section=name)
    for key, value in sections.items():
        yield from _section(f"{name}.{key}", value, definitions)


def _settings_table(fields: dict[str, Any], *, section: str = "", required: list[str] | None = None) -> str:
    rows = ["| setting | default | allowed | meaning |", "| --- | --- | --- | --- |"]
    for name, field in fields.items():
        other = SAME_AS.get(f"{section}.{name}")
        default = "required" if name in (required or []) else _default(field, is_section=other is not None)
        allowed = f"as [`{other}`](#{other.replace('.', '')})" if other else _allowed(field)
        rows.append(f"| `{name}` | {default} | {allowed} | {_cell(field.get('description', ''))} |")
    return "\n".join(rows)


def _default(field: dict[str, Any], *, is_section: bool) -> str:
    default = field.get("default")
    if default is None or (is_section and isinstance(default, dict)):
        return ""
    return f"`{default if isinstance(default, str) else json.dumps(default)}`"


def _allowed(field: dict[str, Any]) -> str:
    if "anyOf" in field:
        forms = [form for form in field["anyOf"] if form.get("type") != "null"]
        return " or ".join(dict.fromkeys(map(_allowed, forms)))
    if "enum" in field or "const" in field:
        return ", ".join(f"`{value}`" for value in field.get("enum", [field.get("const")]))
    if field.get("type") == "boolean":
        return "`true`, `false`"
    if field.get("type") == "array":
        return "list" if "$ref" in field["items"] or "anyOf" in field["items"] else f"list: {_allowed(field['items'])}"
    bounds = [f"{sign} {field[name]:,}" for name, sign in BOUNDS.items() if name in field]
    return f"{KINDS[field['type']]} {', '.join(bounds)}".strip() if "type" in field else ""


def _reference(field: dict[str, Any]) -> str | None:
    """The definition that a field, or the one that may be null, refers to."""
    for form in (field, *field.get("anyOf", ())):
        if "$ref" in form:
            return str(form["$ref"].rpartition("/")[2])
    return None


# ---- docs/python.md: exported names -----------------------------------------------------------------------------


def exported_names() -> str:
    """A table of the names that each package offers."""
    return "\n".join(_name_tables()).strip()


def _name_tables() -> Iterator[str]:
    for package in reversed(PACKAGES):
        module = importlib.import_module(package)
        yield f"\n### `{package}`\n"
        yield "| name | what it is |\n| --- | --- |"
        for name in module.__all__:
            found = getattr(module, name)
            is_value = not callable(found) and not inspect.ismodule(found)
            text = "The published networks by name" if is_value else inspect.getdoc(found)
            yield f"| `{package}.{name}` | {_cell(_first_sentence(text or ''))} |"


def _first_sentence(documentation: str) -> str:
    """Of a docstring, as one line without its full stop."""
    paragraph = _one_line(documentation.split("\n\n")[0])
    return re.split(r"(?<=[.?!]) (?=[A-Z])", paragraph)[0].rstrip(".")


def _cell(text: str) -> str:
    return _one_line(text).replace("|", chr(92) + "|")


def _one_line(text: str) -> str:
    return " ".join(text.split())


GENERATED = {
    "docs/architecture.md": {"modules": modules},
    "docs/settings.md": {"settings": settings},
    "docs/python.md": {"names": exported_names},
}
"""By file, by the name of the part, what makes it."""


def generated(file: str) -> str:
    """The text of a file with its generated parts made anew."""
    text = (ROOT / file).read_text(encoding="utf-8")
    for name, make in GENERATED[file].items():
        start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        before, _, rest = text.partition(start)
        text = f"{before}{start}\n{make()}\n{end}{rest.partition(end)[2]}"
    return text


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    for file in GENERATED:
        (ROOT / file).write_text(generated(file), encoding="utf-8")
