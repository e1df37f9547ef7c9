"""What a comparison found, as a file for readers (Markdown) and one for programs (JSON)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from lsmha.io.atomic import atomic_write_text
from lsmha.provenance import git_revision, hardware, versions


@dataclass(frozen=True)
class Table:
    """Cells as text, in rows below a header."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        lines = [self.header, ["---"] * len(self.header), *self.rows]
        return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


@dataclass(frozen=True)
class Report:
    """Results of one command, and what they were made by."""

    title: str
    protocol: str
    """What was done, for readers of the tables."""
    command: str
    tables: Sequence[Table]
    results: Mapping[str, Sequence[Any]]
    """Dataclasses, by kind."""

    def publish(self, stem: Path | None) -> None:
        """Print it, and write it if there is a stem (raises what `write` does)."""
        print(self.markdown())
        if stem is not None:
            self.write(stem)

    def write(self, stem: Path) -> None:
        """Write `stem`.md and `stem`.json; a stem may end in either.

        Raises:
            OSError: There is no such folder, or the storage is full or read-only.
        """
        content = {
            "title": self.title,
            "protocol": self.protocol,
            "command": self.command,
            **_origin(),
            "results": {kind: [asdict(result) for result in found] for kind, found in self.results.items()},
        }
        name = stem.stem if stem.suffix in (".json", ".md") else stem.name
        atomic_write_text(stem.with_name(f"{name}.json"), json.dumps(content, indent=1) + "\n")
        atomic_write_text(stem.with_name(f"{name}.md"), self.markdown())

    def markdown(self) -> str:
        """The report for readers."""
        return (
            "\n\n".join(
                [f"# {self.title}", self.protocol, f"    {self.command}", _origin_in_words()]
                + [table.markdown() for table in self.tables]
            )
            + "\n"
        )


def _origin() -> dict[str, Any]:
    return {
        "hardware": hardware(),
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "git_revision": git_revision(),
    }


def _origin_in_words() -> str:
    machine, installed = hardware(), versions()
    devices = ", ".join(
        [f"{machine['cpu']}, {machine['cores']} cores, {torch.get_num_threads()} threads", *machine["gpus"]]
    )
    return f"{devices}; Python {installed['python']}, torch {installed['torch']}."
