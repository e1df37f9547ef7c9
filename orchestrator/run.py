"""`lsmha-sweep run`: check everything, then go through the stages and always leave a readable run folder."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console

from lsmha.atomic import atomic_write_text
from lsmha.data import Dataset
from orchestrator.cluster import check_capacity, connect
from orchestrator.errors import Interrupted
from orchestrator.ledger import Ledger, check_new_folder
from orchestrator.preflight import check_batches, load_data
from orchestrator.progress import sweep_progress
from orchestrator.report import finalists_table, front_table, plot_front, write_summary
from orchestrator.stages import Sweep, build_space, build_study, num_trials
from orchestrator.sweep_config import SweepConfig


def run_sweep(
    config: SweepConfig, folder: Path, console: Console, *, address: str | None, dashboard: bool, quiet: bool
) -> int:
    """Run the whole sweep into a new folder and return the exit code: 0 complete, 1 without a single result.

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
        complete = False
        try:
            with (
                interrupts_as_exceptions(),
                sweep_progress(console, lambda: front_table(ledger, title="Front so far"), quiet=quiet) as progress,
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
            write_summary(ledger, complete=complete, wall_seconds=seconds, dataset=describe_dataset(dataset))
            _mark(folder, "complete" if complete else "interrupted")
            if not quiet:
                show_results(ledger, console)
                console.print(f"run folder: {folder}", highlight=False, soft_wrap=True)
    return 0 if ledger.front() else 1


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


def show_results(ledger: Ledger, console: Console) -> None:
    """Print the front and the finalists."""
    console.print(front_table(ledger))
    if any(record.completed for record in ledger.finalists):
        console.print(finalists_table(ledger))


def _mark(folder: Path, stage: str) -> None:
    """Leave word of the stage for `lsmha-sweep status`."""
    state = {"stage": stage, "pid": os.getpid(), "host": os.uname().nodename, "updated": time.time()}
    atomic_write_text(folder / "status.json", json.dumps(state) + "\n")


@contextmanager
def interrupts_as_exceptions() -> Iterator[None]:
    """Turn SIGINT and SIGTERM into `Interrupted`, so that both unwind through the same clean-up."""
    received: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        received.append(number)
        raise Interrupted(number)

    previous = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except BaseException:
        if received:
            # Whatever it is by now: raised inside Ray's compiled code, it can come out as a SystemError.
            raise Interrupted(received[0]) from None
        raise
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
