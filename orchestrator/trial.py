"""The seam between a training run and Ray: everything that Ray Tune and Ray Train need to run one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray import tune
from ray.train.torch import TorchTrainer, get_device
from ray.tune.integration.ray_train import TuneReportCallback

from lsmha.config import ModelConfig, TrainConfig
from lsmha.data import Dataset
from lsmha.training import DivergenceError, EpochMetrics, Trainer, train
from lsmha.training.logits import save_logits
from lsmha.training.saved import save_model
from orchestrator.sweep_config import ResourcesConfig

Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class TrialJob:
    """One training run as it travels to a worker."""

    id: str
    model: ModelConfig
    train: TrainConfig
    checkpoint: Path
    """Rewritten after every epoch; a run that is started again goes on from it."""
    export: Path | None = None
    """Folder for the trained weights and the test logits; None leaves the test set alone."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for Tune's config."""
        return {
            "id": self.id,
            "model": self.model.model_dump_json(),
            "train": self.train.model_dump_json(),
            "checkpoint": str(self.checkpoint),
            "export": self.export and str(self.export),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrialJob:
        return cls(
            id=values["id"],
            model=ModelConfig.model_validate_json(values["model"]),
            train=TrainConfig.model_validate_json(values["train"]),
            checkpoint=Path(values["checkpoint"]),
            export=values["export"] and Path(values["export"]),
        )


def run_job(job: TrialJob, dataset: Dataset, *, device: torch.device, threads: int, report: Report) -> None:
    """Train one configuration, reporting each epoch, then its whole curve with `finished` set.

    A run that cannot go well however often it is tried (divergence, settings that do not fit) reports `failure` with
    the reason instead; other exceptions propagate.
    """
    if device.type == "cpu":
        torch.set_num_threads(threads)

    def on_epoch_end(trainer: Trainer, metrics: EpochMetrics) -> None:
        if trainer.rank == 0:
            trainer.save(job.checkpoint)
        report(metrics.asdict())

    try:
        trainer = train(
            job.model,
            job.train,
            dataset,
            device=device,
            on_epoch_end=on_epoch_end,
            resume_from=job.checkpoint if job.checkpoint.exists() else None,
        )
    except (DivergenceError, ValueError) as error:
        report({"failure": f"{type(error).__name__}: {error}"})
        return
    final: dict[str, Any] = {
        "finished": True,
        "curve": [metrics.asdict() for metrics in trainer.history],
        "precision": trainer.precision,
        "train_device": device.type,
    }
    if job.export is not None and trainer.rank == 0:
        final |= export(trainer, job.export)
    report(final)


def export(trainer: Trainer, folder: Path) -> dict[str, Any]:
    """Save the weights and, in the one look at the test set, its logits. Returns the test metrics."""
    model, dataset = trainer.evaluated_model, trainer.dataset
    save_model(model, folder, dataset=dataset, train_config=trainer.config)
    save_logits(model, folder, "val", dataset=dataset, device=trainer.device)
    test = save_logits(model, folder, "test", dataset=dataset, device=trainer.device)
    return {"test_accuracy": test.accuracy, "test_loss": test.loss}


def build_trainable(resources: ResourcesConfig, arrays: ray.ObjectRef, *, storage: Path) -> Any:
    """Tune's trainable for jobs over one data set: `config["job"]` is `TrialJob.to_dict()`.

    A single worker trains in the trial's own actor; several are DDP ranks of a `TorchTrainer` that the trial starts.
    `arrays` refers to `Dataset.to_arrays()` in the object store: the trials of a node read one copy, in place.
    """
    if resources.workers_per_trial == 1:
        function: Callable[..., None] = _train_in_actor
        bundle = {"CPU": resources.cpus_per_trial, "GPU": resources.gpus_per_trial}
    else:
        function = partial(_train_with_ddp, storage=str(storage))
        # The workers take the trial's CPUs and GPUs; the actor that waits for them must take something, and not those.
        bundle = {"memory": 1024**2}
    trainable = tune.with_parameters(function, arrays=[arrays], resources=resources.model_dump())
    return tune.with_resources(trainable, tune.PlacementGroupFactory([bundle]))


def _train_in_actor(config: dict[str, Any], *, arrays: list[ray.ObjectRef], resources: dict[str, Any]) -> None:
    run_job(
        TrialJob.from_dict(config["job"]),
        Dataset.from_arrays(ray.get(arrays[0])),
        device=torch.device("cuda" if resources["gpus_per_trial"] else "cpu"),
        threads=resources["cpus_per_trial"],
        report=tune.report,
    )


def _train_with_ddp(
    config: dict[str, Any], *, arrays: list[ray.ObjectRef], resources: dict[str, Any], storage: str
) -> None:
    workers = resources["workers_per_trial"]
    trainer = TorchTrainer(
        _train_as_rank,
        train_loop_config={"job": config["job"], "arrays": arrays, "resources": resources},
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers,
            use_gpu=resources["gpus_per_trial"] > 0,
            resources_per_worker={
                "CPU": resources["cpus_per_trial"] // workers,
                **({"GPU": resources["gpus_per_trial"] / workers} if resources["gpus_per_trial"] else {}),
            },
        ),
        run_config=ray.train.RunConfig(
            name=config["job"]["id"],
            storage_path=storage,
            callbacks=[TuneReportCallback()],  # type: ignore[list-item]
            # Tune starts a failed trial again, as it does for single workers.
            failure_config=ray.train.FailureConfig(max_failures=0),
        ),
    )
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        failures = getattr(error, "worker_failures", None) or {}
        raise next(iter(failures.values()), error) from None


def _train_as_rank(config: dict[str, Any]) -> None:
    resources = config["resources"]
    run_job(
        TrialJob.from_dict(config["job"]),
        Dataset.from_arrays(ray.get(config["arrays"][0])),
        device=get_device(),
        threads=resources["cpus_per_trial"] // resources["workers_per_trial"],
        report=ray.train.report,
    )
