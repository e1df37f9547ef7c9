"""How far a run is: left in its folder, and read from there by any process that sees it."""

from __future__ import annotations

import json
import os
import time
from typing import Any

from lsmha.io.atomic import atomic_write_text
from lsmha.io.paths import RunPath
from orchestrator.run_folder.ownership import check_owned, has_owner


def mark_stage(folder: RunPath, stage: str) -> None:
    """Leave word of the stage that a run is in.

    Raises:
        OSError: The storage is full, read-only or gone.
    """
    check_owned(folder)
    state = {"stage": stage, "pid": os.getpid(), "host": os.uname().nodename, "updated": time.time()}
    atomic_write_text(folder / "status.json", json.dumps(state) + "\n")


def describe_stage(folder: RunPath) -> str:
    """`complete`, `interrupted`, `crashed` or the stage under way; without an owner a run counts as interrupted, and
    where it cannot be told whether there is one, that is said."""
    try:
        state: dict[str, Any] = json.loads((folder / "status.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "not started"
    if state["stage"] in ("complete", "interrupted", "crashed"):
        return state["stage"]
    where = f"process {state['pid']} on {state['host']}"
    match has_owner(folder):
        case True:
            return f"in stage {state['stage']} ({where})"
        case False:
            return f"interrupted in stage {state['stage']} ({where} is gone)"
    return f"in stage {state['stage']} ({where}, which may be gone: its lock cannot be looked at)"
