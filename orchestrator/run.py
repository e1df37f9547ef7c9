"""`lsmha-sweep run`: check everything, then go through the stages and always leave a readable run folder."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from lsmha.atomic import atomic_write_text
from lsmha.data import Dataset
from orchestrator.cluster import check_capacity, connect
from orchestrator.interrupts import Interrupted, interrupts_as_exceptions
from orchestrator.ledger import Ledger, check_new_folder
from orchestrator.preflight import check_analysis, check_batches, load_data
from orchestrator.progress import sweep_progress
from orchestrator.report import front_table, git_revision, plot_front, show_results, write_summary
from orchestrator.search_space import SearchSpace
from orchestrator.stages import Sweep, build_space, build_study, num_trials
from orchestrator.sweep_config import SweepConfig


def run_sweep(
    config: SweepConfig, folder: Path, console: Console, *, address: str | None, dashboard: bool, quiet: bool
) -> int:
    """Run the whole sweep into a new folder and return the exit code: 0; 1 if every trial, every finalist, an
    analysis or the committees failed.

    Raises:
        UserError: Something asked for cannot work; nothing has been written.
        Interrupted: SIGINT or SIGTERM; what was done is in the folder.
    """
    check_new_folder(folder)
    build_space(config)
    dataset = load_data(config.data, console, quiet=quiet)
    space = build_space(config, dataset)
    study = build_study(config, space)
    check_batches(config, dataset)
    if config.analysis.enabled:
        check_analysis("analysis", config.analysis.readout, dataset)
    with connect(address, dashboard=dashboard) as capacity:
        check_capacity(config, capacity)
        ledger = Ledger.create(folder, config)
        ending = _Ending(config, space, dataset, ledger, console, quiet=quiet)
        try:
            with (
                interrupts_as_exceptions(when_stuck=ending.write),
                sweep_progress(
                    console, lambda: front_table(ledger, title="Front, best first"), quiet=quiet
                ) as progress,
            ):
                sweep = Sweep(config, space, dataset, ledger, capacity, progress)
                _mark(folder, "search")
                sweep.search(study)
                _mark(folder, "finalists")
                sweep.train_finalists()
                _mark(folder, "analysis")
                sweep.analyse_finalists()
                _mark(folder, "committees")
                committed = sweep.form_committees()
            ending.write(complete=True)
        except Interrupted as interrupted:
            ending.write(interrupted)
            raise
        finally:
            ending.write()
    wanted = config.finalists.max_finalists or config.finalists.include
    tested = any(record.completed for record in ledger.finalists)
    analysed = all(one["status"] == "completed" for one in ledger.analyses.values())
    return 0 if ledger.front() and (tested or not wanted) and analysed and committed else 1


class _Ending:
    """What is left to do when a sweep ends, however it does: write what follows from the records, and say so."""

    def __init__(
        self,
        config: SweepConfig,
        space: SearchSpace,
        dataset: Dataset,
        ledger: Ledger,
        console: Console,
        *,
        quiet: bool,
    ) -> None:
        self._config, self._space, self._dataset, self._ledger = config, space, dataset, ledger
        self._console, self._quiet = console, quiet
        self._started = time.monotonic()
        self._revision = git_revision()  # now: the code on disk may change while this one runs
        self._lock = threading.Lock()
        self._written = False

    def write(self, interrupted: Interrupted | None = None, *, complete: bool = False) -> None:
        """Do it once, whichever thread comes first."""
        with self._lock:
            if self._written:
                return
            self._written = True
            ledger = self._ledger
            ledger.write_tables()
            plot_front(ledger, ledger.folder / "front.png")
            write_summary(
                ledger,
                complete=complete,
                wall_seconds=time.monotonic() - self._started,
                dataset=describe_dataset(self._dataset),
                revision=self._revision,
            )
            _mark(ledger.folder, "complete" if complete else "interrupted" if interrupted else "crashed")
            if interrupted is not None:
                total = num_trials(self._config, self._space)
                self._say(
                    f"interrupted by {interrupted}: {len(ledger.trials)} of {total} trials and "
                    f"{len(ledger.finalists)} finalist runs are recorded"
                )
            if not self._quiet:
                show_results(ledger, self._console)
                self._say(f"run folder: {ledger.folder}")

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def describe_dataset(dataset: Dataset) -> dict[str, Any]:
    """What a summary says of the data."""
    return {
        "name": dataset.name,
        "train_images": len(dataset.train),
        "val_images": len(dataset.val),
        "test_images": len(dataset.test),
        "num_classes": dataset.num_classes,
        "img_size": dataset.img_size,
        "test_fingerprint": dataset.fingerprint,
    }


def _mark(folder: Path, stage: str) -> None:
    """Leave word of the stage for `lsmha-sweep status`."""
    state = {"stage": stage, "pid": os.getpid(), "host": os.uname().nodename, "updated": time.time()}
    atomic_write_text(folder / "status.json", json.dumps(state) + "\n")
