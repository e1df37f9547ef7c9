"""Ray Tune as the engine of a session: one `Tuner.fit` trains whatever the stages of a sweep want trained.

The stages ask in the main thread, where signals arrive; `Tuner.fit` runs in another. It never restores anything: what a
session finds recorded, it does not ask for.
"""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from queue import Empty
from threading import Event, Thread
from types import TracebackType

import ray
from ray import tune
from ray.air._internal import usage
from typing_extensions import Self

from lsmha.io.paths import RunPath
from lsmha.io.scratch import scratch_folder
from orchestrator.config.sweep import ResourcesConfig
from orchestrator.execution.retry_policy import MAX_ATTEMPTS, Decision, decide
from orchestrator.execution.training_job import (
    EventCallback,
    Failed,
    TrainingEvent,
    TrainingJob,
    Warned,
    ended_by,
    joint_name,
)
from orchestrator.execution.trial import TrainingTrial
from orchestrator.execution.tune_parts import (
    FitEnded,
    NewsCallback,
    QueueSearcher,
    TrialFailed,
    TrialQueue,
    WarmScheduler,
)
from orchestrator.failures import failure_of
from orchestrator.search.early_stopping import EarlyStopping
from orchestrator.storage_errors import storage_error_in

SETTINGS = {
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",  # its own state is never read
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a missing metric fails one trial, not the sweep
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_MAX_PENDING_TRIALS_PG": "1000000",  # the searcher knows how many may be there at a time
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "1000000000",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",  # of trials that fail once another one has ended the sweep
}
"""Ray and Ray Tune take these from the environment."""


@dataclass
class _Unfinished:
    """Jobs that have not ended, and what they have been through."""

    jobs: dict[str, TrainingJob]
    on_event: EventCallback
    attempts: Counter[str] = field(default_factory=Counter)
    lost_nodes: Counter[str] = field(default_factory=Counter)
    alone: set[str] = field(default_factory=set)
    """Those that are not to be trained together with others again."""

    def tell(self, events: Iterable[TrainingEvent]) -> None:
        """Pass events on; jobs that have ended leave."""
        for event in events:
            if event.job_id not in self.jobs:
                continue
            for job_id in ended_by([event]):
                del self.jobs[job_id]
            self.on_event(event)


class TuneEngine:
    """Trains jobs as trials of Ray Tune, over one data set; a context that ends what it started.

    Actors, and with several ranks their process groups, stay warm from one trial to the next, and between two calls of
    `train`, until `release`.

    Args:
        arrays: Refers to `Dataset.to_arrays()` in the object store.
        storage: Folder for what Ray Train keeps for itself.
    """

    def __init__(self, arrays: ray.ObjectRef, *, storage: RunPath) -> None:
        self._arrays, self._storage = arrays, storage
        self._queue = TrialQueue()
        self._thread: Thread | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close(abandon=kind is not None)

    def train(
        self,
        jobs: Sequence[TrainingJob],
        on_event: EventCallback,
        *,
        resources: ResourcesConfig,
        concurrency: int,
        early_stopping: EarlyStopping | None = None,
        more: Callable[[], Sequence[TrainingJob]] = tuple,
    ) -> None:
        """Train the jobs, `concurrency` trials at a time; blocks until each was told as completed, stopped, paused or
        failed.

        Whenever that was told of one, `more` is asked for others to train besides; one that paused may be among them.

        A job whose trial fails with an exception is begun anew, from its last epoch, as `retry_policy` says; when it is
        given up, it is told as failed, and the others go on.

        Raises:
            OSError: A worker found the storage full, read-only or gone. No job has failed by that.
        """
        if not jobs:
            return
        if resources != self._queue.resources:
            self.release()
        unfinished = _Unfinished({job.id: job for job in jobs}, on_event)
        with self._queue.changed:
            self._queue.resources, self._queue.concurrency = resources, concurrency
            self._queue.early_stopping = early_stopping
            # Stacking saves time on one device; more devices save more.
            self._queue.stacked_seeds = min(resources.stacked_seeds(), math.ceil(len(jobs) / concurrency))
        self._queue.put(jobs)
        fit = self._started()
        under_way = len(unfinished.jobs)
        while unfinished.jobs:
            try:
                news = self._queue.news.get(timeout=1.0)  # Python's own waiting, in which signals are noticed
            except Empty:
                if not fit.is_alive():
                    raise RuntimeError("Ray Tune has ended before its trials") from None
                continue
            match news:
                case TrialFailed():
                    self._handle_failure(news, unfinished)
                case BaseException():
                    raise news
                case _:
                    unfinished.tell(news)
            if len(unfinished.jobs) < under_way:
                added = more()
                unfinished.jobs |= {job.id: job for job in added}
                self._queue.put(added)
            under_way = len(unfinished.jobs)

    def release(self) -> None:
        """Give up the actors that wait for more, and what they hold; blocks until that is free."""
        if self._thread is None or not self._thread.is_alive():
            return
        released = Event()
        with self._queue.changed:
            self._queue.release = released.set
            self._queue.changed.notify_all()
        while self._thread.is_alive() and not released.wait(1.0):
            pass

    def close(self, *, abandon: bool = False) -> None:
        """End `Tuner.fit`: when its trials have ended, or at once."""
        if self._thread is None:
            return
        with self._queue.changed:
            self._queue.finished, self._queue.abandoned = True, abandon
            self._queue.changed.notify_all()
        # Were it still at work with Ray when the session leaves that, the process would end with another code.
        self._thread.join(30.0 if abandon else None)
        self._thread = None

    def _started(self) -> Thread:
        if self._thread is None:
            self._thread = Thread(target=self._fit, name="Tuner.fit", daemon=True)
            self._thread.start()
        return self._thread

    def _fit(self) -> None:
        os.environ.update(SETTINGS)
        # To count who uses which logger, Ray Tune would import MLflow and W&B wherever they are installed: seconds.
        usage.tag_callbacks = lambda callbacks: False
        scheduler = WarmScheduler(self._queue)
        try:
            trainable = tune.with_parameters(TrainingTrial, arrays=[self._arrays], storage=self._storage)
            trainable.__qualname__ = TrainingTrial.__name__  # by which Ray calls its processes
            # Records are what is kept; this is what Ray Tune insists on writing at the end.
            with scratch_folder("lsmha-tune-") as folder:
                tune.Tuner(
                    trainable,
                    tune_config=tune.TuneConfig(
                        search_alg=QueueSearcher(self._queue, lambda: scheduler.controller),
                        scheduler=scheduler,
                        num_samples=-1,
                        reuse_actors=True,
                        trial_name_creator=_name_of,
                        trial_dirname_creator=lambda trial: f"{_name_of(trial)}-{trial.trial_id}",
                    ),
                    run_config=tune.RunConfig(
                        name="trials",
                        storage_path=str(folder),
                        callbacks=[NewsCallback(self._queue)],
                        failure_config=tune.FailureConfig(max_failures=0),  # `retry_policy` decides
                        checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                        verbose=0,
                    ),
                ).fit()
        except FitEnded:
            pass
        except BaseException as error:
            self._queue.news.put(error)

    def _handle_failure(self, failed: TrialFailed, unfinished: _Unfinished) -> None:
        """Begin anew, or give up, what a trial that failed was training.

        Raises:
            OSError: It failed by the storage.
        """
        if storage_error := storage_error_in(failed.error):
            raise storage_error
        lost_node = _lost_node(failed.error, failed.nodes)
        blamed = [job.id for job in failed.jobs if job.id in unfinished.jobs]
        again: list[TrainingJob] = []
        for job_id in blamed:
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
                    found = failure_of(failed.error)
                    reason = f"{found.reason} (tried {MAX_ATTEMPTS} times)"
                    unfinished.tell([Failed(job_id, replace(found, reason=reason))])
        self._queue.put(again, first=True, alone=unfinished.alone)


def _name_of(trial: tune.experiment.Trial) -> str:
    return joint_name(trial.config["jobs"])


def _lost_node(failure: Exception, nodes: list[str]) -> str | None:
    """The address of one of a trial's nodes that has left the cluster; None where all are there."""
    if isinstance(failure, ray.exceptions.RayTaskError) and failure.cause is not None and len(nodes) == 1:
        return None  # its process lived to tell what went wrong
    # Of a process that has died its node tells at once. That a node has gone, the head may find out after a quarter of
    # a minute; until then Ray says that the process does not answer.
    silent = isinstance(failure, ray.exceptions.ActorUnavailableError)
    deadline = time.monotonic() + 3
    while nodes and time.monotonic() < deadline:
        for node in ray.nodes():
            if node["NodeID"] in nodes and (silent or not node["Alive"]):
                address: str = node["NodeManagerAddress"]
                return address
        time.sleep(0.2)
    # Of an actor that was lost before it said where it is, there are Ray's words only.
    return "of a worker" if "its node has died" in str(failure) else None
