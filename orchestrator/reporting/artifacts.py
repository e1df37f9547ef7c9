"""All in a run folder that follows from its records, and can be made again at any time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lsmha.io.atomic import atomic_write_text
from orchestrator.reporting.plots import plot_front
from orchestrator.reporting.study_export import write_study
from orchestrator.reporting.summary import write_summary
from orchestrator.run_folder.ledger import Ledger
from orchestrator.run_folder.tables import write_tables


def write_artifacts(ledger: Ledger, session: Mapping[str, Any] | None = None) -> None:
    """Write tables, study, plot of the front, tracebacks and the summary; `session` is what `write_summary` takes.

    Raises:
        OSError: The storage is full, read-only or gone.
    """
    write_tables(ledger)
    write_study(ledger, ledger.folder / "study.journal")
    plot_front(ledger, ledger.folder / "front.png")
    write_tracebacks(ledger)
    write_summary(ledger, session)


def write_tracebacks(ledger: Ledger) -> None:
    """Write the traceback of each unexpected failure into `tracebacks/`, which is not there if there was none."""
    found = {record.id: record.traceback for record in [*ledger.trials, *ledger.finalists]}
    found |= {
        f"{record.finalist}-analysis": record.failure.traceback
        for record in ledger.analyses.values()
        if record.failure is not None
    }
    for name, traceback in found.items():
        if traceback is not None:
            folder = ledger.folder / "tracebacks"
            folder.mkdir(exist_ok=True)
            atomic_write_text(folder / f"{name}.txt", traceback)
