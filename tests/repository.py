"""Where things are in the repository."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[1]
FIXTURES = ROOT / "tests" / "fixtures"
SEARCH_SPACES = sorted((ROOT / "search_spaces").glob("*.yaml"))
