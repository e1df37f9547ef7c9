"""How far long work is: the callback that all of it takes."""

from __future__ import annotations

from collections.abc import Callable

OnProgress = Callable[[str, int, int], None]
"""Told an activity, such as "decoding train images", how much of it is done, and how much there is."""


def no_progress(activity: str, done: int, total: int) -> None:
    """Take no notice."""
