"""`lsmha-sweep train`: one network, without a search."""

from __future__ import annotations

import json
from typing import Any

import ray
from rich.console import Console

from lsmha.io.atomic import atomic_write_text
from lsmha.io.paths import RunPath, is_remote
from lsmha.io.tables import write_table
from lsmha.models import model_cost
from lsmha.training.checkpoints import checkpoint_files, remove_checkpoint
from orchestrator.cluster.capacity import check_resources
from orchestrator.cluster.connect import connect
from orchestrator.cluster.loss import ends_if_cluster_is_lost
from orchestrator.cluster.shared_storage import check_shared
from orchestrator.commands.options import validated, variant_config
from orchestrator.commands.preflight import check_batch_sizes, load_data
from orchestrator.config.sweep import DATA_DEFINED, ResourcesConfig, RunConfig
from orchestrator.config.yaml import apply_override
from orchestrator.errors import UserError
from orchestrator.execution.worker import TrialJob
from orchestrator.execution.worker_pool import Crews
from orchestrator.interrupts import interrupts_as_exceptions
from orchestrator.plain_text import print_plain
from orchestrator.run_folder.location import check_output_folder
from orchestrator.storage_errors import storage_errors_in_one_line


def train_one(
    variant: str,
    folder: RunPath,
    console: Console,
    *,
    settings: dict[str, Any],
    overrides: list[str],
    resources: dict[str, Any],
    address: str | None,
    quiet: bool,
) -> int:
    """Train a published variant, with `settings` and `overrides` (`a.b=value`) applied, and test it once.

    `folder` gets `model.safetensors`, `config.json`, `val_logits.safetensors`, `test_logits.safetensors`,
    `curve.parquet` and `result.json`. An unfinished run there goes on from its last epoch. Returns the exit code: 0
    trained and tested, 1 failed.

    Raises:
        UserError: Something asked for cannot work; nothing has been written.
    """
    config = _run_config(variant, settings, overrides)
    asked = validated(ResourcesConfig, resources)
    checkpoint = folder / "checkpoint.pt"
    if is_remote(folder):
        check_output_folder(folder)
    # A run that was cut off or failed leaves its checkpoint, or just what Ray keeps.
    unfinished = {"ray", *(file.name for file in checkpoint_files(checkpoint))}
    if folder.exists() and (not folder.is_dir() or {path.name for path in folder.iterdir()} - unfinished):
        raise UserError(f"--out: must be a new or empty folder or hold an unfinished run, but {str(folder)!r} does not")
    dataset = load_data(config.data, console, quiet=quiet)
    check_batch_sizes([config.train.batch_size], [asked.workers_per_trial], dataset, field="train.batch_size")
    model = config.model.model_copy(update={name: getattr(dataset, name) for name in DATA_DEFINED})
    with (
        storage_errors_in_one_line("once mended, the same command goes on from the last epoch"),
        connect(address) as capacity,
        interrupts_as_exceptions(),
        ends_if_cluster_is_lost("on a new one, the same command goes on from the last epoch"),
    ):
        check_resources("resources", asked, capacity)
        events = _SingleEvents(console, config.train.epochs, quiet=quiet)
        job = TrialJob("train", model, config.train, checkpoint, export=folder)
        folder.mkdir(parents=True, exist_ok=True)
        check_shared(folder)
        crews = Crews(ray.put(dataset.to_arrays()), storage=folder / "ray")
        crews.train([job], events, resources=asked, concurrency=1)
    if events.result is None:
        print_plain(console, f"failed: {events.failure}")
        return 1
    curve = events.result["curve"]
    write_table(folder / "curve.parquet", curve)
    kept = ("test_accuracy", "test_loss", "precision", "attention", "train_device")
    result = {name: events.result[name] for name in kept}
    result |= {name: curve[-1][name] for name in ("epoch", "val_accuracy", "val_loss")}
    result |= model_cost(model)._asdict() | {"seed": config.train.seed, "workers": asked.workers_per_trial}
    atomic_write_text(folder / "result.json", json.dumps(result, indent=2) + "\n")
    remove_checkpoint(checkpoint)
    if not quiet:
        print_plain(
            console,
            f"val_accuracy={result['val_accuracy']:.4f} test_accuracy={result['test_accuracy']:.4f} "
            f"params={result['params']:,} macs={result['macs']:,}\nfolder: {folder}",
        )
    return 0


class _SingleEvents:
    """Prints the epochs of the one job and keeps how it ended."""

    def __init__(self, console: Console, epochs: int, *, quiet: bool) -> None:
        self._console, self._epochs, self._quiet = console, epochs, quiet
        self.result: dict[str, Any] | None = None
        self.failure = "interrupted"

    def started(self, job_id: str) -> None:
        pass

    def epoch_ended(self, job_id: str, metrics: dict[str, Any]) -> None:
        if not self._quiet:
            print_plain(
                self._console,
                f"epoch {metrics['epoch']}/{self._epochs} train_loss={metrics['train_loss']:.4f} "
                f"val_loss={metrics['val_loss']:.4f} val_accuracy={metrics['val_accuracy']:.4f} "
                f"({metrics['images_per_s']:.0f} images/s)",
            )

    def warned(self, job_id: str, warning: str) -> None:
        print_plain(self._console, warning)

    def completed(self, job_id: str, result: dict[str, Any]) -> None:
        self.result = result

    def failed(self, job_id: str, reason: str) -> None:
        self.failure = reason


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
