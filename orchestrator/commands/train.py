"""`lsmha-sweep train`: one network, without a search."""

from __future__ import annotations

import json
from typing import Any

import ray

from lsmha.config import DATA_DEFINED, ModelConfig
from lsmha.io.atomic import atomic_write_text
from lsmha.io.paths import RunPath, is_remote
from lsmha.io.tables import write_table
from lsmha.models import model_cost
from lsmha.training.checkpoints import checkpoint_files, remove_checkpoint
from orchestrator.cluster.capacity import check_resources
from orchestrator.cluster.connect import ClusterChoice
from orchestrator.commands.preflight import check_batch_sizes, load_data, variant_config
from orchestrator.commands.session import session
from orchestrator.config.sweep import ResourcesConfig, RunConfig
from orchestrator.config.validation import validated
from orchestrator.config.yaml import apply_override
from orchestrator.errors import ExitCode, UserError
from orchestrator.execution.engine import TuneEngine
from orchestrator.execution.training_job import (
    Completed,
    Disturbed,
    EpochEnded,
    Failed,
    TrainingEvent,
    TrainingJob,
    TrainingResult,
    Warned,
)
from orchestrator.failures import Failure
from orchestrator.run_folder.location import check_output_folder
from orchestrator.run_folder.ownership import OWNER_FILE, check_free
from orchestrator.terminal import Terminal


def train_one(
    variant: str,
    folder: RunPath,
    terminal: Terminal,
    cluster: ClusterChoice,
    *,
    settings: dict[str, Any],
    overrides: list[str],
    resources: dict[str, Any],
) -> ExitCode:
    """Train a published variant, with `settings` and `overrides` (`a.b=value`) applied, and test it once.

    `folder` gets `model.safetensors`, `config.json`, `val_logits.safetensors`, `test_logits.safetensors`,
    `curve.parquet` and `result.json`. An unfinished run there goes on from its last epoch.

    Raises:
        UserError: Something asked for cannot work; nothing has been written.
    """
    config = _run_config(variant, settings, overrides)
    asked = validated(ResourcesConfig, resources)
    checkpoint = folder / "checkpoint.pt"
    _check_folder(folder, checkpoint)
    dataset = load_data(config.data, terminal)
    check_batch_sizes([config.train.batch_size], [asked.workers_per_trial], dataset, field="train.batch_size")
    model = config.model.model_copy(update={name: getattr(dataset, name) for name in DATA_DEFINED})
    outcome = _Outcome(terminal, config.train.epochs)
    with session(
        folder,
        terminal,
        cluster=cluster,
        again="the same command goes on from the last epoch",
        fits=lambda capacity: check_resources("resources", asked, capacity),
    ):
        job = TrainingJob("train", model, config.train, checkpoint, export=folder)
        with TuneEngine(ray.put(dataset.to_arrays()), storage=folder / "ray") as engine:
            engine.train([job], outcome, resources=asked, concurrency=1)
        if (failure := outcome.failure) is not None:
            if failure.traceback is not None:
                terminal.insist(failure.traceback)
            terminal.insist(f"failed: {failure.reason}")
            return ExitCode.NO_RESULT
        assert outcome.result is not None
        result = _summary(outcome.result, model) | {"seed": config.train.seed, "workers": asked.workers_per_trial}
        write_table(folder / "curve.parquet", outcome.result.curve)
        atomic_write_text(folder / "result.json", json.dumps(result, indent=2) + "\n")
        remove_checkpoint(checkpoint)
    terminal.say(
        f"val_accuracy={result['val_accuracy']:.4f} test_accuracy={result['test_accuracy']:.4f} "
        f"params={result['params']:,} macs={result['macs']:,}\nfolder: {folder}"
    )
    return ExitCode.COMPLETE


class _Outcome:
    """Prints the epochs of the one job and keeps how it ended."""

    def __init__(self, terminal: Terminal, epochs: int) -> None:
        self._terminal, self._epochs = terminal, epochs
        self.result: TrainingResult | None = None
        self.failure: Failure | None = None

    def __call__(self, event: TrainingEvent) -> None:
        match event:
            case EpochEnded(metrics=metrics):
                self._terminal.say(
                    f"epoch {metrics['epoch']}/{self._epochs} train_loss={metrics['train_loss']:.4f} "
                    f"val_loss={metrics['val_loss']:.4f} val_accuracy={metrics['val_accuracy']:.4f} "
                    f"({metrics['images_per_s']:.0f} images/s)"
                )
            case Warned():
                self._terminal.insist(event.message)
            case Disturbed():
                self._terminal.say(event.message)
            case Completed():
                self.result = event.result
            case Failed():
                self.failure = event.failure


def _check_folder(folder: RunPath, checkpoint: RunPath) -> None:
    """Refuse a folder that holds anything but an unfinished run."""
    if is_remote(folder):
        check_output_folder(folder)
    # A run that was cut off or failed leaves its checkpoint, or just its owner's name and what Ray keeps.
    unfinished = {"ray", OWNER_FILE, *(file.name for file in checkpoint_files(checkpoint))}
    if folder.exists() and (not folder.is_dir() or {path.name for path in folder.iterdir()} - unfinished):
        raise UserError(f"--out: must be a new or empty folder or hold an unfinished run, but {str(folder)!r} does not")
    check_free(folder)


def _summary(result: TrainingResult, model: ModelConfig) -> dict[str, Any]:
    last = result.curve[-1]
    return {
        **(result.test or {}),
        "precision": result.precision,
        "attention": result.attention,
        "train_device": result.device,
        **{name: last[name] for name in ("epoch", "val_accuracy", "val_loss")},
        **model_cost(model)._asdict(),
    }


def _run_config(variant: str, settings: dict[str, Any], overrides: list[str]) -> RunConfig:
    model = variant_config(variant).model_dump()
    for name in DATA_DEFINED:
        model.pop(name)
    content: dict[str, Any] = {"data": {}, "model": model, "train": {}}
    for dotted, value in settings.items():
        section, _, key = dotted.partition(".")
        content[section][key] = value
    for override in overrides:
        apply_override(content, override)
    return validated(RunConfig, content)
