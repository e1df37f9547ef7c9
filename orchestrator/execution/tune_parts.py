"""What Ray Tune asks while it runs trials: which comes next, and who is to hear of them.

All of these live in the thread of `Tuner.fit`, and speak with the stages of a sweep through a `TrialQueue`. Ray Tune
pickles them into its own state at the start; nobody reads that, so they have none.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from threading import Condition
from typing import Any

import ray
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from orchestrator.config.sweep import ResourcesConfig
from orchestrator.execution.job_line import JobLine
from orchestrator.execution.ranks.rank_group import free_places_of_ranks
from orchestrator.execution.training_job import EpochEnded, Paused, Resumed, Stopped, TrainingEvent, TrainingJob
from orchestrator.execution.trial import trial_config
from orchestrator.search.early_stopping import EarlyStopping


class FitEnded(BaseException):
    """Ends `Tuner.fit` from within; no `Exception`, so that Ray Tune does not wait for its actors."""


@dataclass(frozen=True)
class TrialFailed:
    """A trial of Ray Tune ended with an exception."""

    jobs: tuple[TrainingJob, ...]
    error: Exception
    nodes: list[str]
    """Ids of the nodes that it trained on; none where it failed before it started."""


@dataclass
class TrialQueue:
    """Jobs on their way to Ray Tune, and news on their way back.

    The thread of `Tuner.fit` takes from one side, the stages of a sweep from the other.
    """

    news: SimpleQueue[list[TrainingEvent] | TrialFailed | BaseException] = field(default_factory=SimpleQueue)
    """What happened, in order; an exception is the end of `Tuner.fit`."""
    changed: Condition = field(default_factory=Condition)
    line: JobLine = field(default_factory=JobLine)
    """Jobs for which Ray Tune has no trial yet."""
    paused: dict[str, Any] = field(default_factory=dict)
    """Trials of Ray Tune that pause, by their one job."""
    going_on: deque[TrainingJob] = field(default_factory=deque)
    """Jobs whose trials are among these, and are to go on."""
    resources: ResourcesConfig = field(default_factory=ResourcesConfig)
    concurrency: int = 1
    """Trials at a time."""
    stacked_seeds: int = 1
    """Jobs of one trial."""
    early_stopping: EarlyStopping | None = None
    """Ends jobs; None lets each train to its end."""
    live: set[str] = field(default_factory=set)
    """Ids that Ray Tune has given its trials that have not ended."""
    finished: bool = False
    """No more jobs will come."""
    abandoned: bool = False
    """Nor is anybody interested in those of now."""
    release: Callable[[], None] | None = None
    """To be called when no trial is live; None when there is nothing to be called."""

    def put(self, jobs: Sequence[TrainingJob], *, first: bool = False, alone: Collection[str] = ()) -> None:
        """Put jobs in line, at the end or `first`; those whose ids are in `alone` each for a trial of its own."""
        with self.changed:
            self.going_on += [job for job in jobs if job.id in self.paused]
            self.line.put([job for job in jobs if job.id not in self.paused], first=first, alone=alone)
            self.changed.notify_all()


class QueueSearcher(Searcher):
    """Suggests the jobs of a `TrialQueue`, whatever proposed them: a study, or the choice of finalists."""

    def __init__(self, queue: TrialQueue, controller: Callable[[], Any]) -> None:
        super().__init__()
        self._queue, self._controller = queue, controller

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]  # as documented
        """The next trial; None while others are live, and it has to wait or there is none."""
        queue = self._queue
        with queue.changed:
            while True:
                if queue.abandoned:
                    raise FitEnded
                free = len(queue.live) < queue.concurrency and not queue.going_on
                if free and (jobs := queue.line.take(queue.stacked_seeds)):
                    queue.live.add(trial_id)
                    return trial_config(jobs, queue.resources)
                if queue.live or queue.going_on:
                    return None
                if queue.release is not None:
                    release_actors(self._controller())
                    queue.release()
                    queue.release = None
                if queue.finished:
                    while queue.paused:  # Ray Tune would wait for them, and say of each that it has completed
                        self._controller()._set_trial_status(queue.paused.popitem()[1], Trial.TERMINATED)
                    return str(Searcher.FINISHED)
                # Ray Tune would ask again in a second, and do nothing in between either.
                queue.changed.wait()

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """A trial has ended, well or not."""
        with self._queue.changed:
            self._queue.live.discard(trial_id)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: records are what a search goes on from."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""


class WarmScheduler(FIFOScheduler):
    """Runs trials as they come, ends or pauses those that are to be, and has actors kept while no trial is there.

    Ray Tune by itself keeps one. What is used of it here is private; `tests/integration/test_engine.py` says so when it
    moves.
    """

    def __init__(self, queue: TrialQueue) -> None:
        super().__init__()
        self._queue = queue
        self._kept: dict[tune.PlacementGroupFactory, int] = {}
        self.controller: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """As many actors are kept as trials of this kind may run at a time."""
        self.controller = tune_controller._tune_controller
        place, wanted = trial.placement_group_factory, self._queue.concurrency
        self.controller._actor_cache.increase_max(place, wanted - self._kept.get(place, 0))
        self._kept[place] = wanted

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """A trial has made a step, which was not its last. A trial of several jobs goes on as long as one of them."""
        stopping, events = self._queue.early_stopping, result["events"]
        if isinstance(events[-1], Paused):
            self._pause(trial)
            return TrialScheduler.NOOP
        if stopping is None or len(trial.config["jobs"]) > 1:
            return TrialScheduler.CONTINUE
        for event in tuple(events):
            match event:
                case Resumed(curve=(*before, latest)):
                    stopping.remember(event.job_id, before)
                    stops = stopping.stops(event.job_id, latest)  # maybe it was killed before it heard
                case EpochEnded():
                    stops = stopping.stops(event.job_id, event.metrics)
                case _:
                    continue
            if stops:
                events.append(Stopped(event.job_id))
                return TrialScheduler.STOP
        return TrialScheduler.CONTINUE

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        """None by name: Ray Tune starts those that are pending, in order, without a walk through all that ever were.
        Those that pause and are to go on become so first.

        It would also give a trial whose own actor is just starting one that has become free, and end the other: while
        trials are short, the few actors that were there first would do all the work. Such a trial keeps its own; one
        whose actor has no place yet takes what is free.
        """
        self._go_on()
        controller = self.controller
        actor_of, has_place = controller._trial_to_actor, controller._actor_manager.is_actor_started
        for waiting in controller._resources_to_pending_trials.values():
            waiting -= {trial for trial in waiting if trial in actor_of and has_place(actor_of[trial])}

    def _pause(self, trial: Any) -> None:
        """Give its actor to others. What it goes on from is the job's own checkpoint, so Ray Tune makes none."""
        self.controller.pause_trial(trial, should_checkpoint=False)
        with self._queue.changed:
            self._queue.live.discard(trial.trial_id)
            self._queue.paused[trial.config["jobs"][0].id] = trial

    def _go_on(self) -> None:
        queue = self._queue
        with queue.changed:
            while queue.going_on and len(queue.live) < queue.concurrency:
                job = queue.going_on.popleft()
                trial = queue.paused.pop(job.id)
                trial.set_config(trial_config((job,), queue.resources))
                queue.live.add(trial.trial_id)
                self.controller._set_trial_status(trial, Trial.PENDING)


def release_actors(controller: Any) -> None:
    """End the actors that Ray Tune keeps for trials to come, and wait until what they hold is free.

    Ray Tune does so by itself when a search has finished. Uses what is private of it, as `WarmScheduler` does.
    """
    if controller is None:  # no trial was ever there
        return
    controller._cleanup_cached_actors(force_all=True)
    actors = controller._actor_manager
    # An actor that is told to end may hang; hundreds take their time.
    deadline = time.monotonic() + 20 + actors.num_total_actors / 5
    while actors.num_total_actors and time.monotonic() < deadline:
        actors.next(timeout=0.1)


class NewsCallback(tune.Callback):
    """Passes on what trials tell, and how they fail."""

    def __init__(self, queue: TrialQueue) -> None:
        self._queue = queue
        self._nodes: dict[str, list[str]] = {}
        self._place: dict[str, str] = {}
        """Placement groups of ranks by the trial that they last trained."""
        self._places: set[str] = set()
        """All of these, those of actors that are kept for trials to come, too."""

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Ray Tune begins a turn of its loop."""
        if self._queue.abandoned:
            raise FitEnded

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """A trial has made a step."""
        if "nodes" in result:
            self._nodes[trial.trial_id] = result["nodes"]
        if (place := result.get("place")) is not None:
            self._place[trial.trial_id] = place
            self._places.add(place)
        self._queue.news.put(result.pop("events"))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial has ended well."""
        self._nodes.pop(trial.trial_id, None)
        self._place.pop(trial.trial_id, None)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial has ended with an exception."""
        if trial.config["resources"].workers_per_trial > 1:
            place = self._place.pop(trial.trial_id, None)
            self._places.discard(place or "")
            free_places_of_ranks(place, besides=self._places)
        nodes = self._nodes.pop(trial.trial_id, [])
        self._queue.news.put(TrialFailed(trial.config["jobs"], _error_of(trial), nodes))


def _error_of(trial: Any) -> Exception:
    """What ended a trial: Ray Tune leaves it in the trial's folder, which is this process's own."""
    file = trial.pickled_error_file
    if file is None:
        return RuntimeError("Ray Tune does not say why")
    with open(file, "rb") as opened:
        error: Exception = ray.cloudpickle.load(opened)
    return error
