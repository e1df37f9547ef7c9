"""`lsmha-sweep run`: check everything, then go through the stages and always leave a readable run folder."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from lsmha.atomic import atomic_write_text
from lsmha.data import Dataset
from orchestrator.cluster import check_capacity, connect
from orchestrator.interrupts import Interrupted, interrupts_as_exceptions
from orchestrator.ledger import Ledger, check_new_folder
from orchestrator.preflight import check_batches, load_data
from orchestrator.progress import sweep_progress
from orchestrator.report import front_table, git_revision, plot_front, show_results, write_summary
from orchestrator.stages import Sweep, build_space, build_study, num_trials
from orchestrator.sweep_config import SweepConfig


def run_sweep(
    config: SweepConfig, folder: Path, console: Console, *, address: str | None, dashboard: bool, quiet: bool
) -> int:
    """Run the whole sweep into a new folder and return the exit code: 0, or 1 where every trial or finalist failed.

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
    with connect(address, dashboard=dashboard) as capacity:
        check_capacity(config, capacity)
        ledger = Ledger.create(folder, config)
        started = time.monotonic()
        revision = git_revision()  # now: the code on disk may change while this one runs
        complete = False
        try:
            with (
                interrupts_as_exceptions(),
                sweep_progress(
                    console, lambda: front_table(ledger, title="Front, best first"), quiet=quiet
                ) as progress,
            ):
                sweep = Sweep(config, space, dataset, ledger, capacity, progress)
                _mark(folder, "search")
                sweep.search(study)
                _mark(folder, "finalists")
                sweep.train_finalists()
            complete = True
        except Interrupted as interrupted:
            console.print(
                f"interrupted by {interrupted}: {len(ledger.trials)} of {num_trials(config, space)} trials and "
                f"{len(ledger.finalists)} finalist runs are recorded",
                highlight=False,
                soft_wrap=True,
            )
            raise
        finally:
            ledger.write_tables()
            plot_front(ledger, folder / "front.png")
            seconds = time.monotonic() - started
            write_summary(
                ledger,
                complete=complete,
                wall_seconds=seconds,
                dataset=describe_dataset(dataset),
                revision=revision,
            )
            _mark(folder, "complete" if complete else "interrupted")
            if not quiet:
                show_results(ledger, console)
                console.print(f"run folder: {folder}", highlight=False, soft_wrap=True)
    wanted, tested = config.finalists.max_finalists, any(record.completed for record in ledger.finalists)
    return 0 if ledger.front() and (tested or not wanted) else 1


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
