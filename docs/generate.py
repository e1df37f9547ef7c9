"""Write what in the documentation follows from the code: `python docs/generate.py`, after which a test says it is up to
date.

Generated parts stand between two comments, `<!-- modules -->` and `<!-- /modules -->`, say; the rest of such a file is
written by hand.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("lsmha", "orchestrator")


def purpose(module: Path) -> str:
    """The first sentence of a module's docstring, as one line."""
    documentation = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or ""
    paragraph = " ".join(documentation.split("\n\n")[0].split())
    return re.split(r"(?<=[.?!]) (?=[A-Z])", paragraph)[0].rstrip(".")


def modules() -> str:
    """A table of modules for each package that has any, in the order of their names."""
    return "\n".join(_tables()).strip()


def _tables() -> Iterator[str]:
    for package in PACKAGES:
        folders = [ROOT / package, *sorted(path.parent for path in (ROOT / package).glob("*/__init__.py"))]
        for folder in folders:
            files = [file for file in sorted(folder.glob("*.py")) if file.name != "__init__.py"]
            yield f"\n### `{folder.relative_to(ROOT).as_posix()}/`\n"
            yield "| module | purpose |\n| --- | --- |"
            for file in files:
                link = f"[{file.name}](../{file.relative_to(ROOT).as_posix()})"
                yield f"| {link} | {purpose(file).replace('|', chr(92) + '|')} |"


GENERATED = {"docs/architecture.md": {"modules": modules}}
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
    for file in GENERATED:
        (ROOT / file).write_text(generated(file), encoding="utf-8")
