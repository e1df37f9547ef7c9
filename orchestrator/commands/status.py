"""`lsmha-sweep status`: how far a run is, while it runs or after."""

from __future__ import annotations

from lsmha.io.paths import RunPath
from orchestrator.reporting.summary import count_by_status, front_hypervolume
from orchestrator.run_folder.committee_rows import ScoredCommittee
from orchestrator.run_folder.ledger import Ledger
from orchestrator.run_folder.records import TrialRecord
from orchestrator.run_folder.status_file import describe_stage
from orchestrator.search.space import describe_point
from orchestrator.terminal import Terminal


def show_status(folder: RunPath, terminal: Terminal) -> None:
    """Print the stage, the counts and the best trial of a run.

    Raises:
        UserError: The folder is not that of a run.
    """
    ledger = Ledger.load(folder)
    lines = [f"{ledger.config.name}: {describe_stage(folder)}"]
    search = ledger.config.search
    budget = _epochs_of(ledger) if search.lets_trials_pause else f"of at most {search.num_trials}"
    for title, records, planned in (
        ("trials", ledger.begun, budget),
        ("finalist runs", ledger.finalists, ""),
    ):
        lines.append(" ".join(f"{title}: {_counted(records)} {planned}".split()))
        for record in records:
            if record.failed:
                lines.append(_failed(record.id, record.error, record.traceback, f"{record.id}.txt"))
    if ledger.analyses:
        failures = {run_id: record.failure for run_id, record in ledger.analyses.items() if record.failure is not None}
        lines.append(f"analyses: {len(ledger.analyses) - len(failures)} completed, {len(failures)} failed")
        for run_id, failure in failures.items():
            lines.append(_failed(run_id, failure.reason, failure.traceback, f"{run_id}-analysis.txt"))
    if ledger.committees is not None:
        scored = sum(isinstance(row, ScoredCommittee) for row in ledger.committees.rows)
        lines.append(f"committees: {scored} scored")
    front = ledger.front()
    if front:
        objective = ledger.config.objectives[0].metric
        best = front[0]
        lines.append(f"best {objective}: {getattr(best, objective):.4g} ({best.id}: {describe_point(best.point)})")
        volume = front_hypervolume(ledger)
        lines.append(f"front: {len(front)} configurations" + (f", hypervolume {volume['value']:.4g}" if volume else ""))
    terminal.say("\n".join(lines))


def _counted(records: list[TrialRecord]) -> str:
    counts = count_by_status(records)
    always = ("completed", "failed")
    return ", ".join(f"{count} {status}" for status, count in counts.items() if count or status in always)


def _epochs_of(ledger: Ledger) -> str:
    epochs = sum(record.epochs for record in ledger.begun)
    return f"after {epochs:,} epochs in all"


def _failed(run_id: str, reason: str | None, traceback: str | None, file: str) -> str:
    unforeseen = f" (unforeseen: see tracebacks/{file})" if traceback else ""
    return f"  {run_id} failed: {reason}{unforeseen}"
