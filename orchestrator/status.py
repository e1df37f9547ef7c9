"""How far a run is: left in its folder, and read from there by any process that sees it."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from lsmha.atomic import atomic_write_text
from orchestrator.ledger import Ledger
from orchestrator.ownership import check_owned, has_owner
from orchestrator.plain_text import print_plain
from orchestrator.progress import describe_point
from orchestrator.report import front_hypervolume


def show_status(folder: Path, console: Console) -> None:
    """Print the stage, the counts and the best trial of a run.

    Raises:
        UserError: The folder is not that of a run.
    """
    ledger = Ledger.load(folder)
    lines = [f"{ledger.config.name}: {describe_stage(folder)}"]
    for title, records, planned in (
        ("trials", ledger.trials, f"of at most {ledger.config.search.num_trials}"),
        ("finalist runs", ledger.finalists, ""),
    ):
        completed = sum(record.completed for record in records)
        lines.append(" ".join(f"{title}: {completed} completed, {len(records) - completed} failed {planned}".split()))
        lines += [f"  {record.id} failed: {record.error}" for record in records if not record.completed]
    if ledger.analyses:
        failed = {run_id: one["error"] for run_id, one in ledger.analyses.items() if one["status"] == "failed"}
        lines.append(f"analyses: {len(ledger.analyses) - len(failed)} completed, {len(failed)} failed")
        lines += [f"  {run_id} failed: {error}" for run_id, error in failed.items()]
    if ledger.committees:
        lines.append(f"committees: {sum(row['kind'] == 'committee' for row in ledger.committees)} scored")
    front = ledger.front()
    if front:
        objective = ledger.config.objectives[0].metric
        best = front[0]
        lines.append(f"best {objective}: {getattr(best, objective):.4g} ({best.id}: {describe_point(best.point)})")
        volume = front_hypervolume(ledger)
        lines.append(f"front: {len(front)} configurations" + (f", hypervolume {volume['value']:.4g}" if volume else ""))
    print_plain(console, "\n".join(lines))


def mark_stage(folder: Path, stage: str) -> None:
    """Leave word of the stage that a run is in.

    Raises:
        OSError: The storage is full, read-only or gone.
    """
    check_owned(folder)
    state = {"stage": stage, "pid": os.getpid(), "host": os.uname().nodename, "updated": time.time()}
    atomic_write_text(folder / "status.json", json.dumps(state) + "\n")


def describe_stage(folder: Path) -> str:
    """`complete`, `interrupted`, `crashed` or the stage under way; without an owner a run counts as interrupted."""
    try:
        state: dict[str, Any] = json.loads((folder / "status.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "not started"
    if state["stage"] in ("complete", "interrupted", "crashed"):
        return state["stage"]
    where = f"process {state['pid']} on {state['host']}"
    if not has_owner(folder):
        return f"interrupted in stage {state['stage']} ({where} is gone)"
    return f"in stage {state['stage']} ({where})"
