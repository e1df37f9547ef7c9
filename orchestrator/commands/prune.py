"""`lsmha-sweep prune`: prune a run's finalists, and compare with random controls."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from lsmha.io.paths import RunPath
from orchestrator.commands.session import open_run
from orchestrator.errors import UserError, report_failures
from orchestrator.reporting.pruning_plot import plot_pruning
from orchestrator.reporting.tables import pruning_table
from orchestrator.run_folder.ledger import Ledger
from orchestrator.stages.pruning import prune_finalists


def prune_run(
    run: RunPath,
    finalists: Sequence[str],
    overrides: list[str],
    console: Console,
    *,
    address: str | None,
    quiet: bool,
) -> int:
    """Prune the named finalists (all by default), write `pruning.parquet` and `pruning.png`; exit code 1 if a
    retraining failed or there was nothing to prune.

    A retraining is recorded as it ends; one of the same name replaces an earlier one.

    Raises:
        UserError: Something asked for cannot work; nothing has been written.
    """
    trained = [record.id for record in Ledger.load(run).finalists if record.completed]
    for name in finalists:
        if name not in trained:
            raise UserError(f"--finalist: must be one of {', '.join(trained) or 'none'}, but got {name!r}")
    with open_run(run, overrides, console, address=address, quiet=quiet) as opened:
        failures = prune_finalists(opened.config, opened.ledger, opened.progress, arrays=opened.arrays, only=finalists)
    ledger = opened.ledger
    rows = [row for _, row in sorted(ledger.prunings.items())]
    if rows:
        plot_pruning(rows, ledger.folder / "pruning.png", title=opened.config.name)
    if rows and not quiet:
        console.print(pruning_table(rows))
        console.print(f"folder: {ledger.folder}", markup=False, highlight=False, soft_wrap=True)
    return report_failures(failures if rows else [*failures, "nothing to prune"])
