"""The seam between a training run and Ray: everything that Ray tasks and Ray Train need to run one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import ray
import ray.train
import torch
import torch.distributed as dist
from pyarrow.fs import FSSpecHandler, PyFileSystem
from ray.train.torch import TorchTrainer, get_device
from ray.util.placement_group import PlacementGroup

from lsmha.config import ModelConfig, TrainConfig
from lsmha.data import Dataset
from lsmha.devices.hardware import UtilizationMeter
from lsmha.errors import DivergenceError, MemoryShortageError
from lsmha.io.paths import RunPath, is_remote, path_of
from lsmha.training import EpochMetrics, StackedTrainer, Trainer, train
from lsmha.training.logits import save_logits
from lsmha.training.memory import free_memory
from lsmha.training.saved import save_model
from orchestrator.cluster.connect import on_this_node
from orchestrator.config.sweep import ResourcesConfig
from orchestrator.execution.worker_log import log, shown

Tell = Callable[[str, Any], None]
"""Says what happens to a job: a kind of `job_board.Event`, and the particulars."""

GPU_MEMORY = "gpu_memory_gib"
"""What is told of an epoch besides its metrics: the peak of GPU memory since the job began, 0 on CPUs."""
UTILIZATION = "utilization"
"""Likewise: how busy the device was in the epoch, 0 to 1; None where that is not known."""


@dataclass(frozen=True)
class TrialJob:
    """One training run as it travels to a worker."""

    id: str
    model: ModelConfig
    train: TrainConfig
    checkpoint: RunPath
    """Rewritten after every epoch; a run that is started again goes on from it."""
    export: RunPath | None = None
    """Folder for the trained weights and the test logits; None leaves the test set alone."""

    @property
    def stack(self) -> str:
        """Name of what differs from this one by its seed alone: that can be trained together."""
        alike = self.train.model_copy(update={"seed": 0})
        return f"{self.model.model_dump_json()} {alike.model_dump_json()}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, to travel."""
        return {
            "id": self.id,
            "stack": self.stack,
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
            checkpoint=path_of(values["checkpoint"]),
            export=values["export"] and path_of(values["export"]),
        )


def run_job(
    job: TrialJob, dataset: Dataset, *, device: torch.device, threads: int, tell: Tell
) -> dict[str, Any] | None:
    """Train one configuration and return its whole curve, with the test metrics if it is exported.

    Tells each epoch. A run that cannot go well however often it is tried (divergence, settings that do not fit) is told
    as failed, and the result is None; other exceptions propagate.
    """
    _prepare(device, threads)
    utilization = UtilizationMeter(device)

    def on_epoch_end(trainer: Trainer, metrics: EpochMetrics) -> None:
        if trainer.rank == 0:
            trainer.save(job.checkpoint)
        tell("epoch", metrics.asdict() | _besides(device, utilization.read()))

    try:
        trainer = train(
            job.model,
            job.train,
            dataset,
            device=device,
            on_epoch_end=on_epoch_end,
            resume_from=job.checkpoint,
            on_damage=lambda damage: tell("warning", damage),
            memory=free_memory(device),
        )
    except (DivergenceError, ValueError) as error:
        tell("failed", f"{type(error).__name__}: {error}")
        return None
    return _result(trainer, job)


def run_stack(
    jobs: Sequence[TrialJob], dataset: Dataset, *, device: torch.device, threads: int, tells: Sequence[Tell]
) -> bool:
    """Train jobs that differ by their seeds alone, together, and tell for each what `run_job` tells and returns.

    Returns:
        Whether it did: not if they were broken off at different epochs, or the memory is too small for all of them.
    """
    _prepare(device, threads)
    utilization = UtilizationMeter(device)
    seeds = [job.train.seed for job in jobs]
    memory = free_memory(device)
    try:
        stack = StackedTrainer(jobs[0].model, jobs[0].train, seeds, dataset, device=device, memory=memory)
    except MemoryShortageError:
        return False
    if not stack.resume([job.checkpoint for job in jobs], on_damage=[partial(tell, "warning") for tell in tells]):
        return False
    failed: set[str] = set()
    while stack.trainers[0].epoch < jobs[0].train.epochs and len(failed) < len(jobs):
        outcomes = stack.run_epoch()
        besides = _besides(device, utilization.read())
        for job, trainer, outcome, tell in zip(jobs, stack.trainers, outcomes, tells, strict=True):
            if job.id in failed:
                continue
            if isinstance(outcome, DivergenceError):
                failed.add(job.id)
                tell("failed", f"{type(outcome).__name__}: {outcome}")
            else:
                trainer.save(job.checkpoint)
                tell("epoch", outcome.asdict() | besides)
    for job, trainer, tell in zip(jobs, stack.trainers, tells, strict=True):
        if job.id not in failed:
            tell("completed", _result(trainer, job))
    return True


def _prepare(device: torch.device, threads: int) -> None:
    if device.type == "cpu":
        torch.set_num_threads(threads)
    else:
        torch.cuda.init()  # before, there is nothing to reset
        torch.cuda.reset_peak_memory_stats(device)


def _besides(device: torch.device, utilization: float | None) -> dict[str, float | None]:
    """What is told of an epoch besides its metrics."""
    return {GPU_MEMORY: _peak_memory_gib(device), UTILIZATION: utilization}


def _result(trainer: Trainer, job: TrialJob) -> dict[str, Any]:
    """What a job has come to, once it is exported."""
    result: dict[str, Any] = {
        "curve": [metrics.asdict() for metrics in trainer.history],
        "precision": trainer.plan.precision,
        "attention": trainer.plan.attention.training if job.model.has_attention else "none",
        "train_device": trainer.device.type,
    }
    if job.export is not None and trainer.rank == 0:
        result |= export(trainer, job.export)
    return result


def _peak_memory_gib(device: torch.device) -> float:
    """Most GPU memory that tensors have taken since the job began, in GiB."""
    return torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else 0.0


def export(trainer: Trainer, folder: RunPath) -> dict[str, Any]:
    """Save the weights and, in the one look at the test set, its logits. Returns the test metrics."""
    model, dataset = trainer.evaluated_model, trainer.dataset
    save_model(model, folder, dataset=dataset, train_config=trainer.config)
    save_logits(model, folder, "val", dataset=dataset, device=trainer.device)
    test = save_logits(model, folder, "test", dataset=dataset, device=trainer.device)
    return {"test_accuracy": test.accuracy, "test_loss": test.loss}


def crew_task(resources: ResourcesConfig) -> Any:
    """The Ray task that is a crew: arguments are those of `_work_alone`."""
    if resources.workers_per_trial > 1:
        # The ranks take the CPUs and GPUs; the task waits for them.
        return ray.remote(_lead_ranks).options(
            num_cpus=0, max_retries=0, name="crew", scheduling_strategy=on_this_node()
        )
    # Without max_calls Ray would end a process that had a GPU after one task.
    return ray.remote(max_calls=0)(_work_alone).options(
        num_cpus=resources.cpus_per_trial,
        num_gpus=resources.gpus,
        max_retries=0,
        name="crew",
        scheduling_strategy="SPREAD" if resources.placement == "spread" else "DEFAULT",
    )


def _work_alone(
    board: Any, crew: str, arrays: list[ray.ObjectRef], resources: dict[str, Any], together: int, storage: str
) -> None:
    """A crew of one: does jobs of the board in this process, up to so many together, until none is left."""
    _join(board, crew)
    device = torch.device("cuda" if resources["gpus_per_trial"] else "cpu")
    jobs = _jobs_of(board, crew, together)
    _do_jobs(jobs, board, crew, arrays, device=device, threads=resources["cpus_per_trial"])


def _lead_ranks(
    board: Any, crew: str, arrays: list[ray.ObjectRef], resources: dict[str, Any], together: int, storage: str
) -> None:
    """A crew of DDP ranks, which does one job at a time."""
    workers = resources["workers_per_trial"]
    trainer = TorchTrainer(
        _work_as_rank,
        train_loop_config={"board": board, "crew": crew, "arrays": arrays, "resources": resources},
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers,
            use_gpu=resources["gpus_per_trial"] > 0,
            resources_per_worker={
                "CPU": resources["cpus_per_trial"] // workers,
                **({"GPU": resources["gpus_per_trial"] / workers} if resources["gpus_per_trial"] else {}),
            },
            placement_strategy=resources["placement"].upper(),
        ),
        # The driver starts a new crew in place of one that failed.
        run_config=ray.train.RunConfig(
            name=crew, **_train_storage(storage), failure_config=ray.train.FailureConfig(max_failures=0)
        ),
    )
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        failures = getattr(error, "worker_failures", None) or {}
        raise next(iter(failures.values()), error) from None
    except ray.exceptions.RayActorError:
        _give_up_places()
        raise


def _train_storage(text: str) -> dict[str, Any]:
    """Ray Train's settings for the folder where it keeps what it needs."""
    path: Any = path_of(text)
    if not is_remote(path):
        return {"storage_path": text}
    return {"storage_path": path.path, "storage_filesystem": PyFileSystem(FSSpecHandler(path.fs))}


def _give_up_places() -> None:
    """Free what Ray Train has reserved in this job; crews that are using theirs begin anew, from their last epoch.

    Ray keeps the places of a controller that was killed until the job ends (its own cleaner works only where a
    dashboard runs), so the next crew would wait for ever.
    """
    job = ray.get_runtime_context().get_job_id()
    for place in ray.util.placement_group_table():
        if place.endswith(job):
            ray.util.remove_placement_group(PlacementGroup(ray.PlacementGroupID.from_hex(place)))


def _work_as_rank(config: dict[str, Any]) -> None:
    _join(config["board"], config["crew"])
    resources = config["resources"]
    leads = dist.get_rank() == 0
    log(config["crew"], f"rank {dist.get_rank()} of {dist.get_world_size()}")
    jobs = _jobs_of(config["board"], config["crew"], 1) if leads else iter(())
    _do_jobs(
        _shared_by_ranks(jobs),
        config["board"] if leads else None,
        config["crew"],
        config["arrays"],
        device=get_device(),
        threads=resources["cpus_per_trial"] // resources["workers_per_trial"],
    )


def _do_jobs(
    rounds: Iterator[list[TrialJob]],
    board: Any | None,
    crew: str,
    arrays: list[ray.ObjectRef],
    *,
    device: torch.device,
    threads: int,
) -> None:
    """Do one job after another, or some together, and tell the board, if there is one, of each."""

    def tell(job_id: str, kind: str, particulars: Any) -> None:
        if board is not None:
            log(job_id, kind, particulars)
            # One by one: Ray does not keep their order by itself.
            ray.get(board.tell.remote(crew, job_id, kind, particulars))

    dataset = _dataset(arrays[0])
    for jobs in rounds:
        tells = [partial(tell, job.id) for job in jobs]
        with shown("+".join(job.id for job in jobs)):
            if len(jobs) > 1 and run_stack(jobs, dataset, device=device, threads=threads, tells=tells):
                continue
            for job, tell_of in zip(jobs, tells, strict=True):
                result = run_job(job, dataset, device=device, threads=threads, tell=tell_of)
                if result is not None:
                    tell_of("completed", result)


@lru_cache(maxsize=1)
def _dataset(arrays: ray.ObjectRef) -> Dataset:
    """The data set, one object for all crews that this process becomes: with it, its copy on the device stays."""
    return Dataset.from_arrays(ray.get(arrays))


def _join(board: Any, crew: str) -> None:
    """Say on which node a process of a crew runs."""
    ray.get(board.join.remote(crew, ray.get_runtime_context().get_node_id()))


def _jobs_of(board: Any, crew: str, most: int) -> Iterator[list[TrialJob]]:
    while jobs := ray.get(board.take.remote(crew, most)):
        yield [TrialJob.from_dict(job) for job in jobs]


def _shared_by_ranks(rounds: Iterator[list[TrialJob]]) -> Iterator[list[TrialJob]]:
    """The jobs of rank 0, on every rank."""
    while True:
        shared: list[list[TrialJob] | None] = [next(rounds, None)]
        dist.broadcast_object_list(shared, src=0, device=get_device())
        if shared[0] is None:
            return
        yield shared[0]
