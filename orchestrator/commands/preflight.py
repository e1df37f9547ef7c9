"""Before anything is written: options read, the data loaded, and recipes that do not fit it refused."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from rich.progress import Progress as Bars

from lsmha.analysis.fields import check_labels_present
from lsmha.analysis.fitting import check_fittable
from lsmha.config import RECIPE_VERSION, DataConfig, ModelConfig, ReadoutConfig
from lsmha.data import Dataset, load_dataset
from lsmha.devices.hardware import default_device
from lsmha.errors import DataError
from lsmha.models import VARIANTS
from orchestrator.config.sweep import IntRange, SweepConfig
from orchestrator.errors import UserError
from orchestrator.run_folder.records import Fingerprint
from orchestrator.search.build import build_space, build_study, epochs_to_train
from orchestrator.search.space import SearchSpace
from orchestrator.search.study import ProposalStudy
from orchestrator.terminal import Terminal


@dataclass(frozen=True)
class PreparedSweep:
    """What a sweep needs besides a cluster and a folder."""

    config: SweepConfig
    dataset: Dataset
    space: SearchSpace
    study: ProposalStudy
    fingerprint: Fingerprint


def prepare_sweep(config: SweepConfig, terminal: Terminal) -> PreparedSweep:
    """Load the data, fit the space to it, and check that each trial can be trained and analyzed.

    Raises:
        UserError: Something asked for cannot work.
    """
    build_space(config)  # what is wrong with the space need not wait for the data
    dataset = load_data(config.data, terminal)
    space = build_space(config, dataset)
    study = build_study(config, space)
    _check_batches(config, dataset)
    if config.search.lets_trials_pause:
        epochs_to_train(config, len(space.points))
    if config.analysis.enabled:
        check_analysis("analysis", config.analysis.readout, dataset)
    return PreparedSweep(config, dataset, space, study, Fingerprint(dataset.digest(), RECIPE_VERSION))


def load_data(config: DataConfig, terminal: Terminal) -> Dataset:
    """Load the data set with a progress bar.

    Raises:
        UserError: It cannot be loaded as configured.
    """
    try:
        with Bars(console=terminal.console, transient=True, disable=not terminal.is_live) as bars:
            tasks: dict[str, Any] = {}

            def on_progress(description: str, done: int, total: int) -> None:
                if description not in tasks:
                    tasks[description] = bars.add_task(description, total=total)
                bars.update(tasks[description], completed=done, total=total)

            return load_dataset(config, on_progress=on_progress, on_note=lambda note: terminal.say(f"warning: {note}"))
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


def _check_batches(config: SweepConfig, dataset: Dataset) -> None:
    """`check_batch_sizes` for every batch size and number of workers of a sweep."""
    workers = {config.resources.workers_per_trial, config.finalist_resources().workers_per_trial}
    searched = config.space.get("batch_size")
    if isinstance(searched, IntRange):
        sizes: Iterable[Any] = range(searched.low, searched.high + 1, searched.step)
    else:
        sizes = searched if isinstance(searched, list) else [config.train.batch_size]
    check_batch_sizes(sizes, workers, dataset, field="space.batch_size" if searched else "train.batch_size")


def variant_config(name: str, *, field: str = "VARIANT") -> ModelConfig:
    """A published variant by name; `field` is what a message calls it.

    Raises:
        UserError: There is none of that name.
    """
    if name not in VARIANTS:
        raise UserError(f"{field}: must be one of {', '.join(sorted(VARIANTS))}, but got {name!r}")
    return VARIANTS[name]


def torch_device(name: str) -> torch.device:
    """The device that --device names: `cpu`, `cuda`, or `auto` for the GPU where there is one.

    Raises:
        UserError: It is none of these, or this machine has no GPU.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device: must be auto, cpu or cuda, but got {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device: must be cpu or auto on a machine without a GPU, but got 'cuda'")
    return default_device() if name == "auto" else torch.device(name)
