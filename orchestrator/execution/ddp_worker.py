"""A worker that is a group of DDP ranks, by Ray Train: rank 0 takes jobs for all of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ray
import ray.train
import torch.distributed as dist
from pyarrow.fs import FSSpecHandler, PyFileSystem
from ray.train.torch import TorchTrainer, get_device
from ray.util.placement_group import PlacementGroup

from lsmha.io.paths import RunPath, is_remote
from orchestrator.cluster.connect import on_this_node
from orchestrator.config.sweep import ResourcesConfig
from orchestrator.execution.training_job import TrainingEvent, TrainingJob
from orchestrator.execution.worker import do_jobs, jobs_of, join, teller
from orchestrator.execution.worker_log import log


def ddp_worker_task() -> Any:
    """The Ray task that leads the ranks: arguments are those of `lead_ranks`."""
    # The ranks take the CPUs and GPUs; the task waits for them.
    return ray.remote(lead_ranks).options(num_cpus=0, max_retries=0, name="train", scheduling_strategy=on_this_node())


def lead_ranks(
    queue: Any, worker: str, arrays: list[ray.ObjectRef], resources: ResourcesConfig, storage: RunPath
) -> None:
    """Have ranks do one job at a time; `storage` is the folder for what Ray Train keeps."""
    workers, gpus = resources.workers_per_trial, resources.gpus
    trainer = TorchTrainer(
        work_as_rank,
        train_loop_config={"queue": queue, "worker": worker, "arrays": arrays, "resources": resources},
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers,
            use_gpu=gpus > 0,
            resources_per_worker={
                "CPU": resources.cpus_per_trial // workers,
                **({"GPU": gpus / workers} if gpus else {}),
            },
            placement_strategy=resources.placement.upper(),
        ),
        # The driver starts a new worker in place of one that failed.
        run_config=ray.train.RunConfig(
            name=worker, **_storage_settings(storage), failure_config=ray.train.FailureConfig(max_failures=0)
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


def work_as_rank(config: dict[str, Any]) -> None:
    """Do what rank 0 gets from the queue, on every rank."""
    queue, worker, resources = config["queue"], config["worker"], config["resources"]
    join(queue, worker)
    leads = dist.get_rank() == 0
    log(worker, f"rank {dist.get_rank()} of {dist.get_world_size()}")
    do_jobs(
        _shared_by_ranks(jobs_of(queue, worker, 1) if leads else iter(())),
        config["arrays"],
        device=get_device(),
        threads=resources.cpus_per_trial // resources.workers_per_trial,
        tell=teller(queue, worker) if leads else _tell_nobody,
    )


def _tell_nobody(event: TrainingEvent) -> None:
    """Rank 0 tells it."""


def _shared_by_ranks(rounds: Iterator[list[TrainingJob]]) -> Iterator[list[TrainingJob]]:
    """The jobs of rank 0, on every rank."""
    while True:
        shared: list[list[TrainingJob] | None] = [next(rounds, None)]
        dist.broadcast_object_list(shared, src=0, device=get_device())
        if shared[0] is None:
            return
        yield shared[0]


def _storage_settings(folder: RunPath) -> dict[str, Any]:
    """Ray Train's settings for the folder where it keeps what it needs."""
    if not is_remote(folder):
        return {"storage_path": str(folder)}
    return {"storage_path": folder.path, "storage_filesystem": PyFileSystem(FSSpecHandler(folder.fs))}


def _give_up_places() -> None:
    """Free what Ray Train has reserved in this job; workers that are using theirs begin anew, from their last epoch.

    Ray keeps the places of a controller that was killed until the job ends (its own cleaner works only where a
    dashboard runs), so the next worker would wait for ever.
    """
    job = ray.get_runtime_context().get_job_id()
    for place in ray.util.placement_group_table():
        if place.endswith(job):
            ray.util.remove_placement_group(PlacementGroup(ray.PlacementGroupID.from_hex(place)))
