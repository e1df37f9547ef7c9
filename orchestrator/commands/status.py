"""`lsmha-sweep status`: how far a run is."""

from __future__ import annotations

from rich.console import Console

from lsmha.io.paths import RunPath
from orchestrator.plain_text import print_plain
from orchestrator.reporting.report import front_hypervolume
from orchestrator.run_folder.ledger import Ledger
from orchestrator.run_folder.status_file import describe_stage
from orchestrator.search.space import describe_point


def show_status(folder: RunPath, console: Console) -> None:
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
