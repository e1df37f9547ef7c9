"""Trains jobs in workers that stay warm from one job to the next, and tells, event by event, what became of each."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any
from uuid import uuid4

import ray

from lsmha.io.paths import RunPath
from orchestrator.cluster.connect import on_this_node
from orchestrator.config.sweep import ResourcesConfig
from orchestrator.execution.ddp_worker import ddp_worker_task
from orchestrator.execution.job_queue import JobQueue, Released
from orchestrator.execution.retry_policy import MAX_ATTEMPTS, Decision, decide
from orchestrator.execution.training_job import (
    Completed,
    EventCallback,
    Failed,
    TrainingEvent,
    TrainingJob,
    Warned,
)
from orchestrator.execution.waiting import done_among
from orchestrator.execution.worker import worker_task
from orchestrator.failures import failure_of
from orchestrator.storage_errors import storage_error_in


@dataclass
class _Unfinished:
    """Jobs that have not ended, and what they have been through."""

    jobs: dict[str, TrainingJob]
    on_event: EventCallback
    attempts: Counter[str] = field(default_factory=Counter)
    lost_nodes: Counter[str] = field(default_factory=Counter)
    alone: set[str] = field(default_factory=set)
    """Those that are not to be done together with others again."""

    def tell(self, events: Iterable[TrainingEvent]) -> None:
        """Pass events on; jobs that have ended leave."""
        for event in events:
            if isinstance(event, Completed | Failed):
                del self.jobs[event.job_id]
            self.on_event(event)


class WorkerPool:
    """Trains jobs on a cluster, several at a time, over one data set.

    A worker is a Ray task in one of Ray's reused processes, or, with several ranks, those of a `TorchTrainer`. It takes
    job after job, so imports, data and process groups are there already when the next one begins. Between two calls of
    `train` no worker holds anything.

    Args:
        arrays: Refers to `Dataset.to_arrays()` in the object store: the workers of a node read one copy, in place.
        storage: Folder for what Ray Train keeps for itself.
    """

    def __init__(self, arrays: ray.ObjectRef, *, storage: RunPath) -> None:
        self._arrays, self._storage = arrays, storage
        queue: Any = ray.remote(JobQueue)
        self._queue = queue.options(num_cpus=0, scheduling_strategy=on_this_node(), enable_task_events=False).remote()
        self._events = self._queue.poll_events.remote()
        session = uuid4().hex[:8]  # Ray Train would take up what another worker of the same name has left
        self._names = (f"worker-{session}-{number}" for number in count())

    def train(
        self,
        jobs: Sequence[TrainingJob],
        on_event: EventCallback,
        *,
        resources: ResourcesConfig,
        concurrency: int,
    ) -> None:
        """Train the jobs, `concurrency` at a time; blocks until each has been told as completed or failed.

        A job whose worker fails is begun anew, from its last epoch, as `retry_policy` says; when it is given up, it is
        told as failed, and the others go on.

        Raises:
            OSError: A worker found the storage full, read-only or gone. No job has failed by that.
        """
        unfinished = _Unfinished({job.id: job for job in jobs}, on_event)
        ray.get(self._queue.put.remote(list(jobs)))
        # Stacking saves time on one device; more devices save more.
        stacked_seeds = min(resources.stacked_seeds(), math.ceil(len(jobs) / concurrency)) if jobs else 1
        workers = dict(self._start(resources, stacked_seeds) for _ in range(min(concurrency, len(jobs))))
        while unfinished.jobs:
            for done in done_among([self._events, *workers]):
                if done == self._events:
                    events = ray.get(done)
                    self._events = self._queue.poll_events.remote()
                    unfinished.tell(events)
                    continue
                left = self._left_by(workers.pop(done), unfinished)
                failure = _failure(done)
                if failure is not None and unfinished.jobs:
                    self._handle_failure(failure, left, unfinished)
                    if len(workers) < min(concurrency, len(unfinished.jobs)):
                        workers.update([self._start(resources, stacked_seeds)])
        self._shut_down(workers, resources)

    def _left_by(self, worker: str, unfinished: _Unfinished) -> Released:
        """What a worker that is gone has left; all that was told before is passed on first."""
        ray.get(self._queue.notify.remote())  # events may be on their way here
        unfinished.tell(ray.get(self._events))
        left: Released = ray.get(self._queue.release.remote(worker))
        self._events = self._queue.poll_events.remote()
        unfinished.tell(left.events)
        return left

    def _handle_failure(self, failure: Exception, left: Released, unfinished: _Unfinished) -> None:
        """Begin anew, or give up, what a worker that failed was doing.

        Raises:
            OSError: It failed by the storage.
        """
        if storage_error := storage_error_in(failure):
            raise storage_error
        # A worker that fails before it has a job fails for the next in line: so that ends, too.
        blamed = left.jobs or [ray.get(self._queue.pop.remote())]
        lost_node = _lost_node(failure, left.nodes)
        again: list[TrainingJob] = []
        for job_id in blamed:
            if job_id not in unfinished.jobs:
                continue
            match decide(
                node_lost=lost_node is not None,
                attempts=unfinished.attempts[job_id],
                lost_nodes=unfinished.lost_nodes[job_id],
            ):
                case Decision.RESCHEDULE:
                    unfinished.lost_nodes[job_id] += 1
                    message = f"node {lost_node} was lost; the run goes on elsewhere from its last epoch"
                    unfinished.tell([Warned(job_id, message)])
                    again.append(unfinished.jobs[job_id])
                case Decision.RETRY:
                    unfinished.attempts[job_id] += 1
                    again.append(unfinished.jobs[job_id])
                    if len(blamed) > 1:  # whichever of them it was: it shall not take the others along again
                        unfinished.alone.add(job_id)
                case Decision.FAIL:
                    found = failure_of(failure)
                    reason = f"{found.reason} (tried {MAX_ATTEMPTS} times)"
                    unfinished.tell([Failed(job_id, replace(found, reason=reason))])
        ray.get(self._queue.put.remote(again, first=True, alone=unfinished.alone))

    def _shut_down(self, workers: dict[ray.ObjectRef, str], resources: ResourcesConfig) -> None:
        idle = ray.get(self._queue.shutdown.remote())
        if resources.workers_per_trial == 1:
            # They wait for room on nodes that did not come, or not again; the autoscaler need not look for it now.
            # By force: one that begins just then would be interrupted within an import, and its process go on, spoilt.
            for task, worker in workers.items():
                if worker in idle:
                    ray.cancel(task, force=True)

    def _start(self, resources: ResourcesConfig, stacked_seeds: int) -> tuple[ray.ObjectRef, str]:
        worker = next(self._names)
        ray.get(self._queue.register.remote(worker))
        arrays = [self._arrays]
        if resources.workers_per_trial > 1:
            task = ddp_worker_task().remote(self._queue, worker, arrays, resources, self._storage)
        else:
            task = worker_task(resources).remote(self._queue, worker, arrays, resources, stacked_seeds)
        return task, worker


def _failure(worker: ray.ObjectRef) -> Exception | None:
    """Why a worker that is gone did not go when its work was done."""
    try:
        ray.get(worker)
    except ray.exceptions.RayError as error:
        return error
    return None


def _lost_node(failure: Exception, nodes: list[str]) -> str | None:
    """The address of one of a worker's nodes that has left the cluster; None where all are there."""
    if isinstance(failure, ray.exceptions.RayTaskError) and failure.cause is not None and len(nodes) == 1:
        return None  # its process lived to tell what went wrong
    deadline = time.monotonic() + 3  # the head may learn a little later than the driver what was lost
    while nodes and time.monotonic() < deadline:
        for node in ray.nodes():
            if node["NodeID"] in nodes and not node["Alive"]:
                address: str = node["NodeManagerAddress"]
                return address
        time.sleep(0.2)
    return "of a worker" if isinstance(failure, ray.exceptions.NodeDiedError) else None
