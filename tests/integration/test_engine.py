"""Ray Tune as the engine: what it keeps warm, what it gives back, and that what is private of it is where we use it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import ray
from background import wait_for
from running_sweep import own_processes
from tiny_data import tiny_dataset, tiny_model, tiny_recipe

from orchestrator.config.sweep import ResourcesConfig
from orchestrator.execution.engine import TuneEngine
from orchestrator.execution.training_job import (
    Completed,
    EpochEnded,
    Paused,
    Resumed,
    Started,
    TrainingEvent,
    TrainingJob,
)

ACTOR, RANK = "ray::TrainingTrial", "RayTrainWorker"


@pytest.fixture
def engine(address: str, tmp_path: Path) -> Iterator[TuneEngine]:
    with TuneEngine(ray.put(tiny_dataset().to_arrays()), storage=tmp_path / "ray") as engine:
        yield engine


def jobs(folder: Path, *names: str, epochs: int = 2) -> list[TrainingJob]:
    return [TrainingJob(name, tiny_model(), tiny_recipe(epochs=epochs), folder / f"{name}.pt") for name in names]


def trained(engine: TuneEngine, work: list[TrainingJob], *, ranks: int = 1, at_a_time: int = 2) -> list[TrainingEvent]:
    events: list[TrainingEvent] = []
    resources = ResourcesConfig(workers_per_trial=ranks, cpus_per_trial=ranks)
    engine.train(work, events.append, resources=resources, concurrency=at_a_time)
    return events


def learned(completed: Completed) -> list[dict[str, float]]:
    """The curve, without what depends on the machine's speed."""
    return [
        {name: value for name, value in metrics.items() if name not in ("seconds", "images_per_s")}
        for metrics in completed.result.curve
    ]


def wait_for_free_cpus(number: int) -> None:
    wait_for(lambda: ray.available_resources().get("CPU", 0.0) == number, f"{number} free CPU(s)")


def test_each_job_is_told_from_its_start_to_its_end(engine: TuneEngine, tmp_path: Path) -> None:
    events = trained(engine, jobs(tmp_path, "a", "b", "c"))
    for name in "abc":
        kinds = [type(event) for event in events if event.job_id == name]
        assert kinds == [Started, EpochEnded, EpochEnded, Completed]


def test_actors_stay_warm_until_they_are_released(engine: TuneEngine, tmp_path: Path) -> None:
    trained(engine, jobs(tmp_path, "a", "b"))
    warm = own_processes(ACTOR)
    assert len(warm) == 2
    trained(engine, jobs(tmp_path, "c", "d"))
    assert own_processes(ACTOR) == warm
    wait_for_free_cpus(0)
    engine.release()
    wait_for_free_cpus(2)
    engine.release()  # which finds nothing
    trained(engine, jobs(tmp_path, "e"))
    engine.close()
    wait_for_free_cpus(2)


def test_an_actor_that_is_starting_is_not_given_up_for_a_warm_one(engine: TuneEngine, tmp_path: Path) -> None:
    trained(engine, jobs(tmp_path, "a"), at_a_time=1)
    warm = own_processes(ACTOR)
    assert len(warm) == 1
    trained(engine, jobs(tmp_path, "b", "c", epochs=1))  # of which the warm one trains the first, and then is free
    assert {*warm} < {*own_processes(ACTOR)}


def test_ranks_stay_warm_until_they_are_released(engine: TuneEngine, tmp_path: Path) -> None:
    events = trained(engine, jobs(tmp_path, "a", "b"), ranks=2, at_a_time=1)
    assert [type(event) for event in events] == [Started, EpochEnded, EpochEnded, Completed] * 2
    warm = own_processes(RANK)
    assert len(warm) == 2
    trained(engine, jobs(tmp_path, "c"), ranks=2, at_a_time=1)
    assert own_processes(RANK) == warm
    trained(engine, jobs(tmp_path, "d"))  # which needs what the ranks hold
    wait_for(lambda: not own_processes(RANK), "the end of the ranks")
    engine.close()
    wait_for_free_cpus(2)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_job_that_pauses_goes_on_as_though_it_had_not(engine: TuneEngine, tmp_path: Path, ranks: int) -> None:
    (whole,) = jobs(tmp_path, "whole", epochs=6)
    *_, completed = trained(engine, [whole], ranks=ranks, at_a_time=1)
    assert isinstance(completed, Completed)
    (job,) = jobs(tmp_path, "parts", epochs=6)
    *_, paused = trained(engine, [replace(job, pause_at=1)], ranks=ranks, at_a_time=1)
    assert isinstance(paused, Paused)
    warm = own_processes(RANK if ranks > 1 else ACTOR)
    trained(engine, jobs(tmp_path, "between"), ranks=ranks, at_a_time=1)  # by the same actor
    events = trained(engine, [replace(job, pause_at=3)], ranks=ranks, at_a_time=1)
    assert [type(event) for event in events] == [Started, Resumed, EpochEnded, EpochEnded, Paused]
    assert own_processes(RANK if ranks > 1 else ACTOR) == warm
    engine.release()
    *_, last = trained(engine, [job], ranks=ranks, at_a_time=1)  # by another one
    assert isinstance(last, Completed)
    assert learned(last) == learned(completed)
    trained(engine, [replace(job, id="left", checkpoint=tmp_path / "left.pt", pause_at=2)], ranks=ranks, at_a_time=1)
    engine.close()  # with one that pauses still
    wait_for_free_cpus(2)


def test_more_jobs_come_whenever_one_has_left(engine: TuneEngine, tmp_path: Path) -> None:
    events: list[TrainingEvent] = []
    job, other, later = jobs(tmp_path, "a", "b", "c")
    waiting = [[replace(job, pause_at=1)], [other, job], [later]]

    def more() -> list[TrainingJob]:
        return waiting.pop(0) if waiting else []

    engine.train(more(), events.append, resources=ResourcesConfig(), concurrency=1, more=more)
    assert [event.job_id for event in events if isinstance(event, Completed)] == ["a", "b", "c"]
    assert not waiting


def test_ray_tune_counts_loggers_where_that_is_left_out() -> None:
    from ray.air._internal import usage
    from ray.tune.tune import air_usage

    assert air_usage is usage
    assert callable(usage.tag_callbacks)
