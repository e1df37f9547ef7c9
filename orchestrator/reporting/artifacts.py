"""All in a run folder that follows from its records, and can be made again at any time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.reporting.report import plot_front, write_summary
from orchestrator.reporting.study_export import write_study
from orchestrator.run_folder.ledger import Ledger


def write_derived_files(ledger: Ledger, session: Mapping[str, Any] | None = None) -> None:
    """Write tables, study, plot of the front, and the summary; `session` is what `write_summary` takes.

    Raises:
        OSError: The storage is full, read-only or gone.
    """
    ledger.write_tables()
    write_study(ledger, ledger.folder / "study.journal")
    plot_front(ledger, ledger.folder / "front.png")
    write_summary(ledger, session)
