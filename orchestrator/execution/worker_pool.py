"""Trains jobs in crews that stay warm from one job to the next, and tells, event by event, what became of each."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import count
from typing import Any, Protocol
from uuid import uuid4

import ray

from lsmha.io.paths import RunPath
from orchestrator.cluster.connect import on_this_node
from orchestrator.config.sweep import ResourcesConfig
from orchestrator.errors import describe_error
from orchestrator.execution.job_queue import Event, JobBoard
from orchestrator.execution.worker import TrialJob, crew_task
from orchestrator.storage_errors import storage_error_in

MAX_ATTEMPTS = 3
"""How often a job is tried whose crew fails: an exception, a killed process."""
MAX_LOST_NODES = 20
"""How often it is tried besides because a node was lost: no fault of the job, unless its memory brings nodes down."""


class JobEvents(Protocol):
    """What happens to a job, called in the driver, in order."""

    def started(self, job_id: str) -> None:
        """A crew begins with the job, maybe not for the first time."""

    def epoch_ended(self, job_id: str, metrics: dict[str, Any]) -> None: ...

    def warned(self, job_id: str, warning: str) -> None:
        """Something that the job got over, in one line."""

    def completed(self, job_id: str, result: dict[str, Any]) -> None:
        """The job trained to its end; `result` is what `trial.run_job` returns."""

    def failed(self, job_id: str, reason: str) -> None:
        """The job ended without a result; `reason` is one line."""


class Crews:
    """Trains jobs on a cluster, several at a time, over one data set.

    A crew is a Ray task in one of Ray's reused worker processes, or, with several workers, the ranks of a
    `TorchTrainer`. It takes job after job, so imports, data and process groups are there already when the next one
    begins. Between two calls of `train` no crew holds anything.

    Args:
        arrays: Refers to `Dataset.to_arrays()` in the object store: the crews of a node read one copy, in place.
        storage: Folder for what Ray Train keeps for itself.
    """

    def __init__(self, arrays: ray.ObjectRef, *, storage: RunPath) -> None:
        self._arrays, self._storage = arrays, storage
        board: Any = ray.remote(JobBoard)
        self._board = board.options(num_cpus=0, scheduling_strategy=on_this_node(), enable_task_events=False).remote()
        self._news = self._board.news.remote()
        session = uuid4().hex[:8]  # Ray Train would take up what another crew of the same name has left
        self._names = (f"crew-{session}-{number}" for number in count())

    def train(
        self, jobs: Sequence[TrialJob], events: JobEvents, *, resources: ResourcesConfig, concurrency: int
    ) -> None:
        """Train the jobs, `concurrency` at a time; blocks until each has been told as completed or failed.

        A job whose crew fails is begun anew, from its last epoch, `MAX_ATTEMPTS` times in all; then it is told as
        failed, and the others go on. One whose node was lost is begun anew on another one.

        Raises:
            OSError: A crew found the storage full, read-only or gone. No job has failed by that.
        """
        waiting = {job.id: job.to_dict() for job in jobs}
        attempts: Counter[str] = Counter()
        lost_nodes: Counter[str] = Counter()
        ray.get(self._board.post.remote(list(waiting.values())))
        # Stacking saves time on one device; more devices save more.
        together = min(resources.most_together(), math.ceil(len(jobs) / concurrency)) if jobs else 1
        crews = dict(self._start(resources, together) for _ in range(min(concurrency, len(jobs))))
        while waiting:
            # With a limit, so that a signal is noticed.
            ready, _ = ray.wait([self._news, *crews], num_returns=1, timeout=1)
            for done in ready:
                if done == self._news:
                    told = ray.get(done)
                    self._news = self._board.news.remote()
                    _tell(told, events, waiting)
                    continue
                crew, failure = crews.pop(done), _failure(done)
                # What was told before comes first: news may be on their way here.
                ray.get(self._board.wake.remote())
                _tell(ray.get(self._news), events, waiting)
                handover = ray.get(self._board.hand_over.remote(crew))
                self._news = self._board.news.remote()
                _tell(handover.news, events, waiting)
                if failure is None or not waiting:
                    continue
                if storage_error := storage_error_in(failure):
                    raise storage_error
                # A crew that fails before it has a job fails for the next in line: so that ends, too.
                blamed = handover.jobs or [ray.get(self._board.withdraw.remote())]
                again = [job for job in blamed if job in waiting]
                if again and (lost := _lost_node(failure, handover.nodes)) and lost_nodes[again[0]] < MAX_LOST_NODES:
                    lost_nodes.update(again)
                    for job in again:
                        events.warned(job, f"node {lost} was lost; the run goes on elsewhere from its last epoch")
                else:
                    attempts.update(again)
                    if len(again) > 1:  # whichever of them it is: it shall not take the others along again
                        for job in again:
                            waiting[job]["stack"] = None
                for job in again:
                    if attempts[job] >= MAX_ATTEMPTS:
                        reason = f"{describe_error(failure)} (tried {MAX_ATTEMPTS} times)"
                        _tell([("failed", job, reason)], events, waiting)
                left = [waiting[job] for job in again if job in waiting]
                ray.get(self._board.post.remote(left, first=True))
                if len(crews) < min(concurrency, len(waiting)):
                    crews.update([self._start(resources, together)])
        idle = ray.get(self._board.dismiss_all.remote())
        if resources.workers_per_trial == 1:
            # They wait for room on nodes that did not come, or not again; the autoscaler need not look for it now.
            # By force: one that begins just then would be interrupted within an import, and its process go on, spoilt.
            for task, crew in crews.items():
                if crew in idle:
                    ray.cancel(task, force=True)

    def _start(self, resources: ResourcesConfig, together: int) -> tuple[ray.ObjectRef, str]:
        crew = next(self._names)
        ray.get(self._board.enrol.remote(crew))
        task = crew_task(resources)
        settings = resources.model_dump()
        return task.remote(self._board, crew, [self._arrays], settings, together, str(self._storage)), crew


def _failure(crew: ray.ObjectRef) -> Exception | None:
    """Why a crew that is gone did not go when its work was done."""
    try:
        ray.get(crew)
    except ray.exceptions.RayError as error:
        return error
    return None


def _lost_node(failure: Exception, nodes: list[str]) -> str | None:
    """The address of one of a crew's nodes that has left the cluster; None where all are there."""
    if isinstance(failure, ray.exceptions.RayTaskError) and failure.cause is not None and len(nodes) == 1:
        return None  # its process lived to tell what went wrong
    deadline = time.monotonic() + 3  # the head may learn a little later than the driver what was lost
    while nodes and time.monotonic() < deadline:
        for node in ray.nodes():
            if node["NodeID"] in nodes and not node["Alive"]:
                return node["NodeManagerAddress"]
        time.sleep(0.2)
    return "of a worker" if isinstance(failure, ray.exceptions.NodeDiedError) else None


def _tell(news: Iterable[Event], events: JobEvents, waiting: dict[str, Any]) -> None:
    """Pass news on; jobs that have ended leave `waiting`."""
    for kind, job_id, particulars in news:
        match kind:
            case "started":
                events.started(job_id)
            case "epoch":
                events.epoch_ended(job_id, particulars)
            case "warning":
                events.warned(job_id, particulars)
            case "completed":
                del waiting[job_id]
                events.completed(job_id, particulars)
            case "failed":
                del waiting[job_id]
                events.failed(job_id, particulars)
