"""`lsmha-sweep prune`: prune a run's finalists, and compare with random controls."""

from __future__ import annotations

from collections.abc import Sequence

from lsmha.io.paths import RunPath
from orchestrator.cluster.connect import ClusterChoice
from orchestrator.commands.session import open_finished_run
from orchestrator.errors import ExitCode, UserError, report_failures
from orchestrator.reporting.plots import plot_pruning
from orchestrator.reporting.tables import pruning_table
from orchestrator.run_folder.ledger import Ledger
from orchestrator.stages.pruning import prune_finalists
from orchestrator.terminal import Terminal


def prune_run(
    run: RunPath, finalists: Sequence[str], overrides: list[str], terminal: Terminal, cluster: ClusterChoice
) -> ExitCode:
    """Prune the named finalists (all by default), write `pruning.parquet` and `pruning.png`; `NO_RESULT` if a
    retraining failed or there was nothing to prune.

    A retraining is recorded as it ends; one of the same name replaces an earlier one.

    Raises:
        UserError: Something asked for cannot work; nothing has been written.
    """
    trained = [record.id for record in Ledger.load(run).finalists if record.completed]
    for name in finalists:
        if name not in trained:
            raise UserError(f"--finalist: must be one of {', '.join(trained) or 'none'}, but got {name!r}")
    with open_finished_run(run, overrides, terminal, cluster) as opened:
        ledger = opened.ledger
        failures = prune_finalists(opened.config, ledger, opened.progress, arrays=opened.arrays, only=finalists)
        networks = [record.network for _, record in sorted(ledger.prunings.items())]
        if networks:
            plot_pruning(networks, ledger.folder / "pruning.png", title=opened.config.name)
    if networks:
        terminal.show(pruning_table(networks))
        terminal.say(f"folder: {ledger.folder}")
    return report_failures(failures if networks else [*failures, "nothing to prune"])
