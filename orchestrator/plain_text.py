"""Text on the console as it is: for paths, names and messages, which are no markup."""

from __future__ import annotations

from rich.console import Console


def print_plain(console: Console, text: str) -> None:
    """Print lines without interpreting, coloring or wrapping them: a path that is copied from the terminal works."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)
