"""Work on a run that has ended: its records, its data and a cluster, opened together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import ray
from rich.console import Console
from rich.text import Text

from lsmha.data import Dataset
from lsmha.io.paths import RunPath
from lsmha.training.logits import load_logits
from orchestrator.cluster.capacity import check_task
from orchestrator.cluster.connect import connect
from orchestrator.cluster.loss import ends_if_cluster_is_lost
from orchestrator.cluster.shared_storage import check_shared
from orchestrator.commands.preflight import check_analysis, load_data
from orchestrator.config.sweep import SweepConfig
from orchestrator.config.yaml import load_sweep_config
from orchestrator.errors import UserError
from orchestrator.interrupts import interrupts_as_exceptions
from orchestrator.reporting.progress import Progress, sweep_progress
from orchestrator.run_folder.ledger import Ledger
from orchestrator.run_folder.ownership import check_free, owned
from orchestrator.storage_errors import storage_errors_in_one_line


@dataclass(frozen=True)
class ExistingRun:
    """What work on a run needs."""

    ledger: Ledger
    config: SweepConfig
    """The run's own, with the overrides of today."""
    arrays: ray.ObjectRef
    """`Dataset.to_arrays()` in the object store."""
    progress: Progress


@contextmanager
def open_run(
    folder: RunPath, overrides: list[str], console: Console, *, address: str | None, quiet: bool
) -> Iterator[ExistingRun]:
    """Open a run with trained finalists and a cluster that can hold the analysis of one.

    Raises:
        UserError: It is no such run, its data cannot be loaded or have changed, or the cluster is too small.
    """
    for override in overrides:
        section = override.partition("=")[0].strip()
        if section != "data.path" and section.partition(".")[0] not in ("analysis", "pruning"):
            raise UserError(
                f"--set: only analysis, pruning and data.path of a run can be changed, but got {override!r}"
            )
    ledger = Ledger.load(folder)
    config = load_sweep_config(folder / "config.yaml", overrides)
    if not any(record.completed for record in ledger.finalists):
        raise UserError(f"RUN: must have trained finalists, but {str(folder)!r} has none")
    check_free(folder)
    dataset = load_data(config.data, console, quiet=quiet)
    _check_same_test_set(ledger, dataset)
    check_analysis("analysis", config.analysis.readout, dataset)
    check_analysis("pruning", config.pruning.readout, dataset)
    with (
        storage_errors_in_one_line("nothing recorded is lost"),
        connect(address) as capacity,
        interrupts_as_exceptions(),
        ends_if_cluster_is_lost("nothing recorded is lost, and the same command goes on"),
    ):
        check_task(*config.analysis_resources(), capacity)
        check_shared(folder)
        with owned(folder), sweep_progress(console, lambda: Text(""), quiet=quiet) as progress:
            yield ExistingRun(Ledger.load(folder), config, ray.put(dataset.to_arrays()), progress)


def _check_same_test_set(ledger: Ledger, dataset: Dataset) -> None:
    for record in ledger.finalists:
        if record.completed:
            try:
                fingerprint = load_logits(ledger.finalist_folder(record.id), "test").fingerprint
            except (OSError, ValueError) as error:
                raise UserError(f"RUN: logits of finalist {record.id} cannot be read: {error}") from None
            if fingerprint != dataset.fingerprint:
                raise UserError(
                    f"data: must hold the run's own test set (fingerprint {fingerprint[:12]}), "
                    f"but got {dataset.fingerprint[:12]}"
                )
