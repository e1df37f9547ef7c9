"""What a worker process does: one job of the queue after another, or some together, until none is left for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any

import ray
import torch

from lsmha.data import Dataset
from orchestrator.config.sweep import ResourcesConfig
from orchestrator.execution.training import run_job, run_seed_group
from orchestrator.execution.training_job import TrainingEvent, TrainingJob
from orchestrator.execution.worker_log import log_event, log_job


def worker_task(resources: ResourcesConfig) -> Any:
    """The Ray task that is a worker of its own: arguments are those of `work_alone`."""
    # Without max_calls Ray would end a process that had a GPU after one task.
    return ray.remote(max_calls=0)(work_alone).options(
        num_cpus=resources.cpus_per_trial,
        num_gpus=resources.gpus,
        max_retries=0,
        name="train",
        scheduling_strategy="SPREAD" if resources.placement == "spread" else "DEFAULT",
    )


def work_alone(
    queue: Any, worker: str, arrays: list[ray.ObjectRef], resources: ResourcesConfig, stacked_seeds: int
) -> None:
    """Do jobs in this process, up to so many that differ by their seeds alone together."""
    join(queue, worker)
    device = torch.device("cuda" if resources.gpus else "cpu")
    jobs = jobs_of(queue, worker, stacked_seeds)
    do_jobs(jobs, arrays, device=device, threads=resources.cpus_per_trial, tell=teller(queue, worker))


def do_jobs(
    rounds: Iterable[list[TrainingJob]],
    arrays: list[ray.ObjectRef],
    *,
    device: torch.device,
    threads: int,
    tell: Callable[[TrainingEvent], None],
) -> None:
    """Do the jobs of each round together, where that is possible, else one after another."""
    dataset = _dataset(arrays[0])
    for jobs in rounds:
        with log_job("+".join(job.id for job in jobs)):
            if len(jobs) > 1 and run_seed_group(jobs, dataset, device=device, threads=threads, on_event=tell):
                continue
            for job in jobs:
                run_job(job, dataset, device=device, threads=threads, on_event=tell)


def join(queue: Any, worker: str) -> None:
    """Say on which node a process of a worker runs."""
    ray.get(queue.join.remote(worker, ray.get_runtime_context().get_node_id()))


def jobs_of(queue: Any, worker: str, limit: int) -> Iterator[list[TrainingJob]]:
    """What the queue has for a worker, up to so many jobs at a time."""
    while jobs := ray.get(queue.get.remote(worker, limit)):
        yield jobs


def teller(queue: Any, worker: str) -> Callable[[TrainingEvent], None]:
    """Logs events and tells the queue of them."""

    def tell(event: TrainingEvent) -> None:
        log_event(event)
        # One by one: Ray does not keep their order by itself.
        ray.get(queue.tell.remote(worker, event))

    return tell


@lru_cache(maxsize=1)
def _dataset(arrays: ray.ObjectRef) -> Dataset:
    """The data set, one object for all workers that this process becomes: with it, its copy on the device stays."""
    return Dataset.from_arrays(ray.get(arrays))
