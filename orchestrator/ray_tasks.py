"""Independent pieces of work as Ray tasks that report progress."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Protocol, TypeVar

import ray
import torch
from ray.util.queue import Queue

from lsmha.analysis.fitting import OnProgress
from lsmha.data import Dataset
from orchestrator.cluster import on_this_node
from orchestrator.errors import describe_error
from orchestrator.progress import Progress
from orchestrator.storage_errors import storage_error_in


class Job(Protocol):
    """A piece of work with a name."""

    @property
    def id(self) -> str: ...


class Outcomes:
    """What became of jobs: keeps each result as it comes, and shows it.

    Args:
        progress: Where to show it.
        keep: Records a result and describes it in a few words.
        keep_failure: Records a failure, whose reason is one line.
    """

    def __init__(
        self,
        progress: Progress,
        *,
        keep: Callable[[str, Any], str],
        keep_failure: Callable[[str, str], None] = lambda *_: None,
    ) -> None:
        self._progress, self._keep, self._keep_failure = progress, keep, keep_failure
        self.completed_ids: list[str] = []
        self.failures: list[str] = []
        """One line each."""

    def progressed(self, job_id: str, activity: str, done: int, total: int) -> None:
        """A job is `done` out of `total` through an activity."""
        self._progress.part(job_id, activity, done, total)

    def completed(self, job_id: str, result: Any) -> None:
        """A job has a result."""
        self._progress.finished(job_id, self._keep(job_id, result))
        self.completed_ids.append(job_id)

    def failed(self, job_id: str, reason: str) -> None:
        """A job has none, and will have none."""
        self._keep_failure(job_id, reason)
        self.failures.append(f"{job_id}: {reason}")
        self._progress.finished(job_id, reason, failed=True)


JobT = TypeVar("JobT", bound=Job)
Work = Callable[[JobT, Dataset, torch.device, OnProgress], Any]
"""Does a job on the data set, on a device, telling how far it is."""


def run_tasks(
    work: Work[JobT], jobs: Sequence[JobT], outcomes: Outcomes, *, cpus: int, gpus: float, arrays: ray.ObjectRef
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
            done, _ = ray.wait(list(pending), num_returns=1, timeout=0.5)
            for report in _waiting(reports):
                outcomes.progressed(*report)
            for finished in done:
                job = pending.pop(finished)
                try:
                    result = ray.get(finished)
                except ray.exceptions.RayError as error:
                    if storage_error := storage_error_in(error):
                        raise storage_error from None
                    outcomes.failed(job.id, describe_error(error))
                else:
                    outcomes.completed(job.id, result)
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
