"""Where a command prints: a console, unless it was asked to be quiet."""

from __future__ import annotations

from dataclasses import dataclass, field

from rich.console import Console, RenderableType


@dataclass(frozen=True)
class Terminal:
    """A console, and whether only errors are printed, which go to standard error."""

    console: Console = field(default_factory=Console)
    quiet: bool = False

    def say(self, text: str) -> None:
        """Print lines without interpreting, coloring or wrapping them: a path copied from the terminal works."""
        if not self.quiet:
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def insist(self, text: str) -> None:
        """Print lines also where it is to be quiet: what went wrong, and how to go on."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def show(self, table: RenderableType) -> None:
        """Print a table."""
        if not self.quiet:
            self.console.print(table)

    @property
    def is_live(self) -> bool:
        """Whether there is somebody to see bars and views that change: not in a file, even if its colors are forced."""
        return self.console.is_terminal and self.console.file.isatty() and not self.quiet


QUIET = Terminal(Console(quiet=True), quiet=True)
"""Prints nothing."""
