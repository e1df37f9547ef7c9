"""Before anything is written: load the data, and refuse recipes that do not fit it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.progress import Progress as Bars

from lsmha.analysis.fields import check_labels_present
from lsmha.analysis.fitting import check_fittable
from lsmha.config import DataConfig, ReadoutConfig
from lsmha.data import Dataset, load_dataset
from lsmha.errors import DataError
from orchestrator.config.sweep import IntRange, SweepConfig
from orchestrator.errors import UserError


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


def check_analysis(section: str, readout: ReadoutConfig, dataset: Dataset) -> None:
    """Refuse read-outs that the data cannot serve; `section` names the settings in the message.

    Raises:
        UserError: A label has no test image, or training images are too few.
    """
    try:
        check_labels_present(dataset)
        check_fittable(dataset, readout)
    except ValueError as error:
        raise UserError(f"{section}: {error}") from None


def check_batches(config: SweepConfig, dataset: Dataset) -> None:
    """`check_batch_sizes` for every batch size and number of workers of a sweep."""
    workers = {config.resources.workers_per_trial, config.finalist_resources().workers_per_trial}
    searched = config.space.get("batch_size")
    if isinstance(searched, IntRange):
        sizes: Iterable[Any] = range(searched.low, searched.high + 1, searched.step)
    else:
        sizes = searched if isinstance(searched, list) else [config.train.batch_size]
    check_batch_sizes(sizes, workers, dataset, field="space.batch_size" if searched else "train.batch_size")
