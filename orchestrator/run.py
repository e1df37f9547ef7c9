"""`lsmha-sweep run`: check everything, then go through the stages and always leave a readable run folder."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.progress import Progress as Bars

from lsmha.atomic import atomic_write_text
from lsmha.config import DataConfig
from lsmha.data import DataError, Dataset, load_dataset
from orchestrator.cluster import Capacity, check_capacity, concurrent_trials, connect
from orchestrator.errors import Interrupted, UserError
from orchestrator.ledger import Ledger, check_new_folder
from orchestrator.progress import describe_point, sweep_progress
from orchestrator.report import finalists_table, front_table, plot_front, write_summary
from orchestrator.search_space import SearchSpace
from orchestrator.stages import Sweep, build_space, build_study, num_trials
from orchestrator.sweep_config import IntRange, ResourcesConfig, SweepConfig


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
    _check_batches(config, dataset)
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


def show_plan(config: SweepConfig, console: Console, *, address: str | None, proposals: int = 8) -> None:
    """Print the space's size, the first proposals, and the resource plan; train and write nothing.

    Raises:
        UserError: As `run_sweep` would.
    """
    build_space(config)
    dataset = load_data(config.data, console, quiet=False)
    _check_batches(config, dataset)
    space = build_space(config, dataset)
    study = build_study(config, space)
    with connect(address) as capacity:
        check_capacity(config, capacity)
        _print_plan(config, space, dataset, capacity, console)
    shown = [proposal for proposal in (study.ask() for _ in range(proposals)) if proposal]
    console.print("first proposals:")
    for proposal in shown:
        console.print(f"  {describe_point(proposal.point)}", highlight=False, soft_wrap=True)


def _print_plan(
    config: SweepConfig, space: SearchSpace, dataset: Dataset, capacity: Capacity, console: Console
) -> None:
    size = f"{len(space.points):,} configurations" if space.is_finite else "continuous"
    console.print(
        f"data: {dataset.name}, {len(dataset.train):,} train, {len(dataset.val):,} validation, "
        f"{len(dataset.test):,} test images, {dataset.num_classes} labels\n"
        f"space: {size}; sampler {config.search.sampler}, {num_trials(config, space)} trials of "
        f"{config.train.epochs} epochs",
        highlight=False,
        soft_wrap=True,
    )
    console.print(_describe_resources("trials", config.resources, capacity), highlight=False, soft_wrap=True)
    runs = config.finalists.max_finalists * len(config.finalists.seeds)
    if runs:
        console.print(
            f"{_describe_resources('finalists', config.finalist_resources(), capacity)}; up to {runs} runs of "
            f"{config.finalist_epochs()} epochs",
            highlight=False,
            soft_wrap=True,
        )


def _describe_resources(title: str, resources: ResourcesConfig, capacity: Capacity) -> str:
    return (
        f"{title}: {resources.workers_per_trial} worker(s), {resources.cpus_per_trial} CPU(s) and "
        f"{resources.gpus_per_trial:g} GPU(s) each, {concurrent_trials(resources, capacity)} at a time on "
        f"{capacity.cpus} CPU(s) and {capacity.gpus:g} GPU(s)"
    )


def load_data(config: DataConfig, console: Console, *, quiet: bool) -> Dataset:
    """Load the data set with a progress bar.

    Raises:
        UserError: It cannot be loaded as configured.
    """
    try:
        with Bars(console=console, transient=True, disable=quiet or not console.is_terminal) as bars:
            tasks: dict[str, Any] = {}

            def on_progress(description: str, done: int, total: int) -> None:
                if description not in tasks:
                    tasks[description] = bars.add_task(description, total=total)
                bars.update(tasks[description], completed=done, total=total)

            return load_dataset(config, on_progress=on_progress)
    except DataError as error:
        raise UserError(str(error)) from None


def check_batch_sizes(sizes: Iterable[int], workers: Iterable[int], dataset: Dataset, *, field: str) -> None:
    """Refuse batches that the data cannot fill or the workers cannot share.

    Raises:
        UserError: Some batch size of `field` is not possible with some number of workers.
    """
    for size in sizes:
        if size > len(dataset.train):
            raise UserError(f"{field}: at most the {len(dataset.train):,} training images are allowed, but got {size}")
        for count in workers:
            if size % count:
                raise UserError(f"{field}: must be a multiple of the {count} workers of a trial, but got {size}")


def _check_batches(config: SweepConfig, dataset: Dataset) -> None:
    workers = {config.resources.workers_per_trial, config.finalist_resources().workers_per_trial}
    searched = config.space.get("batch_size")
    if isinstance(searched, IntRange):
        sizes: Iterable[Any] = range(searched.low, searched.high + 1, searched.step)
    else:
        sizes = searched if isinstance(searched, list) else [config.train.batch_size]
    check_batch_sizes(sizes, workers, dataset, field="space.batch_size" if searched else "train.batch_size")


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

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number)

    previous = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
