"""How far long work is, and what its user should know of it: the callbacks that all of it takes."""

from __future__ import annotations

from collections.abc import Callable

OnProgress = Callable[[str, int, int], None]
"""Told an activity, such as "decoding train images", how much of it is done, and how much there is."""
OnNote = Callable[[str], None]
"""Told, in one line, what was done that may not be what was wanted."""


def ignored(note: str) -> None:
    """Take no notice."""


def no_progress(activity: str, done: int, total: int) -> None:
    """Take no notice."""
