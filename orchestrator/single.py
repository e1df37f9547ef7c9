"""One network without a search: `lsmha-sweep train` and `lsmha-sweep latency`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from lsmha.atomic import atomic_path, atomic_write_text
from lsmha.config import LatencyConfig, ModelConfig
from lsmha.hardware import default_device
from lsmha.latency import measure_latency
from lsmha.models import VARIANTS, model_cost
from orchestrator.cluster import check_resources, connect
from orchestrator.errors import UserError, describe_validation_error
from orchestrator.preflight import check_batch_sizes, load_data
from orchestrator.run import interrupts_as_exceptions
from orchestrator.searcher import JobSearcher
from orchestrator.sweep_config import DATA_DEFINED, ResourcesConfig, RunConfig, apply_override
from orchestrator.trial import TrialJob
from orchestrator.tune_run import run_jobs


def train_one(
    variant: str,
    folder: Path,
    console: Console,
    *,
    settings: dict[str, Any],
    overrides: list[str],
    resources: dict[str, Any],
    address: str | None,
    quiet: bool,
) -> int:
    """Train a published variant, with `settings` and `overrides` (`a.b=value`) applied, and test it once.

    `folder` gets `model.safetensors`, `config.json`, `test_logits.safetensors`, `curve.parquet` and `result.json`. An
    unfinished run there goes on from its last epoch. Returns the exit code: 0 trained and tested, 1 failed.

    Raises:
        UserError: Something asked for cannot work; nothing has been written.
    """
    config = _run_config(variant, settings, overrides)
    asked = _validated(ResourcesConfig, resources, prefix="")
    checkpoint = folder / "checkpoint.pt"
    if folder.exists() and not checkpoint.is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--out: must be a new or empty folder or hold an unfinished run, but {str(folder)!r} does not")
    dataset = load_data(config.data, console, quiet=quiet)
    check_batch_sizes([config.train.batch_size], [asked.workers_per_trial], dataset, field="train.batch_size")
    model = config.model.model_copy(update={name: getattr(dataset, name) for name in DATA_DEFINED})
    with connect(address) as capacity, interrupts_as_exceptions():
        check_resources("resources", asked, capacity)
        events = _SingleEvents(console, config.train.epochs, quiet=quiet)
        job = TrialJob("train", model, config.train, checkpoint, export=folder)
        run_jobs(
            JobSearcher([job]),
            events,
            name="train",
            num_jobs=1,
            resources=asked,
            concurrency=1,
            arrays=ray.put(dataset.to_arrays()),
            storage=folder / "ray",
        )
    if events.result is None:
        console.print(f"failed: {events.failure}", markup=False, highlight=False, soft_wrap=True)
        return 1
    curve = events.result["curve"]
    with atomic_path(folder / "curve.parquet") as temporary:
        pq.write_table(pa.Table.from_pylist(curve), temporary, write_page_checksum=True)
    result = {name: events.result[name] for name in ("test_accuracy", "test_loss", "precision", "train_device")}
    result |= {name: curve[-1][name] for name in ("epoch", "val_accuracy", "val_loss")}
    result |= model_cost(model)._asdict() | {"seed": config.train.seed, "workers": asked.workers_per_trial}
    atomic_write_text(folder / "result.json", json.dumps(result, indent=2) + "\n")
    checkpoint.unlink(missing_ok=True)
    if not quiet:
        console.print(
            f"val_accuracy={result['val_accuracy']:.4f} test_accuracy={result['test_accuracy']:.4f} "
            f"params={result['params']:,} macs={result['macs']:,}\nfolder: {folder}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    return 0


def show_latencies(
    variant: str,
    console: Console,
    *,
    num_heads: str | None,
    num_conv_blocks: str | None,
    settings: dict[str, Any],
) -> None:
    """Measure a variant in this process, for each head count and number of conv blocks, and print the table.

    Raises:
        UserError: An option is not valid, or a combination is not a valid architecture.
    """
    base = _variant(variant)
    sizes = _integers("--batch-sizes", settings["batch_sizes"])
    config = _validated(LatencyConfig, {**settings, "batch_sizes": sizes}, prefix="")
    device = default_device() if config.device == "auto" else torch_device(config.device)
    heads = _integers("--num-heads", num_heads) if num_heads else [base.num_heads]
    convs = _integers("--num-conv-blocks", num_conv_blocks) if num_conv_blocks else [base.num_conv_blocks]
    models = [
        _validated(ModelConfig, {**base.model_dump(), "num_heads": h, "num_conv_blocks": c}, prefix="")
        for h in heads
        for c in convs
    ]
    table = Table(title_justify="left")
    for name in (
        "num_heads",
        "conv blocks",
        "batch",
        "ms / image",
        "interquartile",
        "n",
        "attention",
        "params",
        "MACs",
    ):
        table.add_column(name, justify="right")
    with console.status("measuring") as status:
        for index, model in enumerate(models):
            status.update(f"measuring {index + 1}/{len(models)}")
            cost = model_cost(model)
            for row in measure_latency(model, config, device=device):
                spread = f"{row.latency_p25_ms:.3f}-{row.latency_p75_ms:.3f}"
                cells = (model.num_heads, model.num_conv_blocks, row.batch_size, f"{row.latency_ms:.3f}", spread)
                rest = (row.iterations, row.attention, f"{cost.params:,}", f"{cost.macs:,}")
                table.add_row(*map(str, (*cells, *rest)))
                last = asdict(row)
    table.title = (
        f"{variant} on {last['device']}, {last['dtype']}, {last['threads']} thread(s), torch {last['torch_version']}"
    )
    console.print(table)


def torch_device(name: str) -> Any:
    """The torch device, if this machine has it.

    Raises:
        UserError: It has no GPU.
    """
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device: must be cpu or auto on a machine without a GPU, but got 'cuda'")
    return torch.device(name)


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
            self._console.print(
                f"epoch {metrics['epoch']}/{self._epochs} train_loss={metrics['train_loss']:.4f} "
                f"val_loss={metrics['val_loss']:.4f} val_accuracy={metrics['val_accuracy']:.4f} "
                f"({metrics['images_per_s']:.0f} images/s)",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )

    def completed(self, job_id: str, result: dict[str, Any]) -> None:
        self.result = result

    def failed(self, job_id: str, reason: str) -> None:
        self.failure = reason


def _variant(name: str) -> ModelConfig:
    if name not in VARIANTS:
        raise UserError(f"VARIANT: must be one of {', '.join(sorted(VARIANTS))}, but got {name!r}")
    return VARIANTS[name]


def _run_config(variant: str, settings: dict[str, Any], overrides: list[str]) -> RunConfig:
    model = _variant(variant).model_dump()
    for name in DATA_DEFINED:
        model.pop(name)
    content: dict[str, Any] = {"data": {}, "model": model, "train": {}}
    for dotted, value in settings.items():
        section, _, key = dotted.partition(".")
        content[section][key] = value
    for override in overrides:
        apply_override(content, override)
    return _validated(RunConfig, content, prefix="")


def _validated(kind: Any, content: dict[str, Any], *, prefix: str) -> Any:
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise UserError(describe_validation_error(error, prefix=prefix)) from None


def _integers(option: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"{option}: must be whole numbers such as 1,4,16, but got {text!r}") from None
