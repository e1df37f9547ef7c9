"""What Ray Tune is told when it asks for the next trial, and what is passed on when it tells of one."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.tune.search import Searcher

from lsmha.config import ModelConfig, TrainConfig
from orchestrator.config.sweep import ResourcesConfig
from orchestrator.execution.training_job import EpochEnded, Resumed, Started, Stopped, TrainingJob, Warned
from orchestrator.execution.tune_parts import (
    FitEnded,
    NewsCallback,
    QueueSearcher,
    TrialFailed,
    TrialQueue,
    WarmScheduler,
)


def jobs(*names: str) -> list[TrainingJob]:
    """Jobs that differ by their seeds alone."""
    recipe = TrainConfig(epochs=1, warmup_epochs=0.0)
    return [
        TrainingJob(name, ModelConfig(), recipe.model_copy(update={"seed": seed}), Path(f"{name}.pt"))
        for seed, name in enumerate(names)
    ]


@pytest.fixture
def queue() -> TrialQueue:
    return TrialQueue(concurrency=2)


@pytest.fixture
def searcher(queue: TrialQueue) -> QueueSearcher:
    return QueueSearcher(queue, lambda: None)


def names(suggested: Any) -> str:
    return "+".join(job.id for job in suggested["jobs"])


def in_thread(work: Callable[[], Any]) -> tuple[Thread, list[Any]]:
    """Work that may have to wait; its result comes into the list."""
    results: list[Any] = []
    thread = Thread(target=lambda: results.append(work()), daemon=True)
    thread.start()
    return thread, results


def test_so_many_trials_as_may_run_at_a_time_are_suggested(queue: TrialQueue, searcher: QueueSearcher) -> None:
    queue.put(jobs("a", "b", "c"))
    queue.resources = ResourcesConfig(cpus_per_trial=3)
    first = searcher.suggest("1")
    assert (names(first), first["resources"].cpus_per_trial) == ("a", 3)
    assert names(searcher.suggest("2")) == "b"
    assert searcher.suggest("3") is None
    searcher.on_trial_complete("1", {"done": True})
    assert names(searcher.suggest("3")) == "c"
    searcher.on_trial_complete("2", error=True)
    assert searcher.suggest("4") is None  # nothing is in line, and one is live
    assert queue.live == {"3"}


def test_seeds_are_suggested_together(queue: TrialQueue, searcher: QueueSearcher) -> None:
    queue.stacked_seeds = 2
    queue.put(jobs("a", "b", "c"))
    assert [names(searcher.suggest(trial)) for trial in ("1", "2")] == ["a+b", "c"]


def test_where_nothing_is_live_it_waits_for_jobs(queue: TrialQueue, searcher: QueueSearcher) -> None:
    thread, results = in_thread(lambda: searcher.suggest("1"))
    thread.join(0.05)
    assert not results
    queue.put(jobs("a"))
    thread.join(5)
    assert names(results[0]) == "a"


def test_it_is_finished_when_all_have_ended(queue: TrialQueue, searcher: QueueSearcher) -> None:
    queue.put(jobs("a"))
    queue.finished = True
    assert names(searcher.suggest("1")) == "a"
    assert searcher.suggest("2") is None
    searcher.on_trial_complete("1", {"done": True})
    assert searcher.suggest("2") == Searcher.FINISHED


def test_actors_are_released_once_nothing_is_live(queue: TrialQueue, searcher: QueueSearcher) -> None:
    released: list[str] = []
    queue.put(jobs("a"))
    searcher.suggest("1")
    queue.release, queue.finished = lambda: released.append("yes"), True
    assert searcher.suggest("2") is None
    assert not released
    searcher.on_trial_complete("1", {"done": True})
    assert searcher.suggest("2") == Searcher.FINISHED
    assert released == ["yes"]


def test_an_abandoned_fit_ends_at_once(queue: TrialQueue, searcher: QueueSearcher) -> None:
    queue.put(jobs("a"))
    queue.abandoned = True
    with pytest.raises(FitEnded):
        searcher.suggest("1")
    with pytest.raises(FitEnded):
        NewsCallback(queue).on_step_begin(0, [])
    assert not issubclass(FitEnded, Exception)


def test_events_are_passed_on_and_not_kept(queue: TrialQueue) -> None:
    result = {"events": [Started("a")], "nodes": ["here"], "done": False}
    NewsCallback(queue).on_trial_result(0, [], SimpleNamespace(trial_id="1"), result)
    assert queue.news.get_nowait() == [Started("a")]
    assert "events" not in result


def test_a_failure_comes_with_its_cause_and_its_nodes(queue: TrialQueue, tmp_path: Path) -> None:
    file = tmp_path / "error.pkl"
    file.write_bytes(ray.cloudpickle.dumps(ValueError("no more")))
    config = {"jobs": tuple(jobs("a")), "resources": ResourcesConfig()}
    trial = SimpleNamespace(trial_id="1", config=config, pickled_error_file=str(file))
    callback = NewsCallback(queue)
    callback.on_trial_result(0, [], trial, {"events": [], "nodes": ["here"]})
    queue.news.get_nowait()
    for nodes in (["here"], []):  # the second time it failed before it said where it was
        callback.on_trial_error(0, [], trial)
        failed = queue.news.get_nowait()
        assert isinstance(failed, TrialFailed)
        assert (failed.jobs, failed.nodes, str(failed.error)) == (config["jobs"], nodes, "no more")


def test_none_of_it_is_in_the_state_of_ray_tune(queue: TrialQueue, searcher: QueueSearcher) -> None:
    for part in (searcher, NewsCallback(queue), WarmScheduler(queue)):
        assert b"TrialQueue" not in pickle.dumps(part)


class EndsAt:
    """Stops a run at an epoch, and keeps what it was to remember."""

    def __init__(self, epoch: int) -> None:
        self._epoch = epoch
        self.remembered: list[int] = []

    def stops(self, run_id: str, metrics: Any) -> bool:
        return bool(metrics["epoch"] == self._epoch)

    def remember(self, run_id: str, curve: Any) -> None:
        self.remembered += [metrics["epoch"] for metrics in curve]


def test_a_run_is_stopped_after_its_epoch_or_when_it_would_go_on_after_it(queue: TrialQueue) -> None:
    scheduler, one = WarmScheduler(queue), SimpleNamespace(config={"jobs": jobs("a")})
    first, second, third = ({"epoch": number} for number in (1, 2, 3))

    def told(*events: Any) -> tuple[str, list[Any]]:
        result = {"events": list(events)}
        return scheduler.on_trial_result(None, one, result), result["events"]

    assert told(EpochEnded("a", second)) == ("CONTINUE", [EpochEnded("a", second)])  # nobody stops any
    queue.early_stopping = stopping = EndsAt(2)  # type: ignore[assignment]
    assert told(Started("a"))[0] == "CONTINUE"
    assert told(EpochEnded("a", first))[0] == "CONTINUE"
    assert told(EpochEnded("a", second)) == ("STOP", [EpochEnded("a", second), Stopped("a")])
    # The session was killed before the stop was recorded.
    assert told(Warned("a", "damaged"), Resumed("a", (first, second)))[0] == "STOP"
    assert stopping.remembered == [1]
    assert told(Resumed("a", (first, second, third)))[0] == "CONTINUE"
    together = SimpleNamespace(config={"jobs": jobs("a", "b")})
    assert scheduler.on_trial_result(None, together, {"events": [EpochEnded("a", second)]}) == "CONTINUE"
