"""`lsmha-sweep prune`: prune a run's finalists, and compare with random controls."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from lsmha.tables import write_table
from orchestrator.analysis_report import pruning_table
from orchestrator.errors import UserError
from orchestrator.existing_run import open_run
from orchestrator.ledger import Ledger
from orchestrator.pruning_plot import plot_pruning
from orchestrator.pruning_stage import prune_finalists


def prune_run(
    run: Path,
    finalists: Sequence[str],
    overrides: list[str],
    console: Console,
    *,
    address: str | None,
    quiet: bool,
) -> int:
    """Prune the named finalists (all by default), write `pruning.parquet` and `pruning.png`; exit code 1 if none came
    out.

    Raises:
        UserError: Something asked for cannot work; nothing has been written.
    """
    trained = [record.id for record in Ledger.load(run).finalists if record.completed]
    for name in finalists:
        if name not in trained:
            raise UserError(f"--finalist: must be one of {', '.join(trained) or 'none'}, but got {name!r}")
    with open_run(run, overrides, console, address=address, quiet=quiet) as opened:
        rows = prune_finalists(opened, only=finalists)
    if not rows:
        console.print("nothing was pruned", highlight=False)
        return 1
    write_table(run / "pruning.parquet", rows)
    plot_pruning(rows, run / "pruning.png", title=opened.config.name)
    if not quiet:
        console.print(pruning_table(rows))
        console.print(f"folder: {run}", markup=False, highlight=False, soft_wrap=True)
    return 0
