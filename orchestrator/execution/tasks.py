"""Independent pieces of work as Ray tasks that report progress."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Protocol, TypeVar

import ray
import torch
from ray.util.queue import Queue

from lsmha.data import Dataset
from lsmha.progress import OnProgress
from orchestrator.cluster.connect import on_this_node
from orchestrator.execution.waiting import done_among
from orchestrator.failures import Failure, failure_of
from orchestrator.storage_errors import storage_error_in


class Job(Protocol):
    """A piece of work with a name."""

    @property
    def id(self) -> str: ...


class TaskEvents(Protocol):
    """What happens to a job, called in the driver."""

    def progressed(self, job_id: str, activity: str, done: int, total: int) -> None:
        """It is `done` out of `total` through an activity."""

    def completed(self, job_id: str, result: Any) -> None:
        """It has a result."""

    def failed(self, job_id: str, failure: Failure) -> None:
        """It has none, and will have none."""


JobT = TypeVar("JobT", bound=Job)
Work = Callable[[JobT, Dataset, torch.device, OnProgress], Any]
"""Does a job on the data set, on a device, telling how far it is."""


def run_tasks(
    work: Work[JobT], jobs: Sequence[JobT], events: TaskEvents, *, cpus: int, gpus: float, arrays: ray.ObjectRef
) -> None:
    """Do the jobs, as many at a time as the cluster has room for; blocks.

    A job whose process dies is started once more; one that fails is told, and the others go on. `arrays` refers to
    `Dataset.to_arrays()` in the object store.

    Raises:
        OSError: A job found the storage full, read-only or gone.
    """
    reports = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": on_this_node()})
    task: Any = ray.remote(_do).options(num_cpus=cpus, num_gpus=gpus, max_retries=1, name=work.__name__)
    pending = {task.remote(work, job, [arrays], cpus, gpus > 0, reports): job for job in jobs}
    try:
        while pending:
            done = done_among(pending, within_s=0.5)
            for report in _waiting(reports):
                events.progressed(*report)
            for finished in done:
                job = pending.pop(finished)
                try:
                    result = ray.get(finished)
                except ray.exceptions.RayError as error:
                    if storage_error := storage_error_in(error):
                        raise storage_error from None
                    events.failed(job.id, failure_of(error))
                else:
                    events.completed(job.id, result)
    finally:
        reports.shutdown(force=True)


def _waiting(reports: Queue) -> list[Any]:
    """Reports that have come in; none where the node that kept them is gone."""
    try:
        return reports.get_nowait_batch(reports.qsize())
    except ray.exceptions.RayError:
        return []


def _do(work: Work[JobT], job: JobT, arrays: list[ray.ObjectRef], threads: int, use_gpu: bool, reports: Queue) -> Any:
    if not use_gpu:
        torch.set_num_threads(threads)
    reported = 0.0

    def report(activity: str, done: int, total: int) -> None:
        nonlocal reported
        if time.monotonic() - reported > 0.5:
            reported = time.monotonic()
            with suppress(ray.exceptions.RayError):  # work goes on where nobody can be told of it
                reports.put_nowait((job.id, activity, done, total))

    dataset = Dataset.from_arrays(ray.get(arrays[0]))
    return work(job, dataset, torch.device("cuda" if use_gpu else "cpu"), report)
