"""Jobs in line, who took which, and what the driver hears of it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from lsmha.config import ModelConfig, TrainConfig
from orchestrator.execution.job_queue import JobQueue, Released
from orchestrator.execution.training_job import (
    Completed,
    EpochEnded,
    Failed,
    Started,
    TrainingEvent,
    TrainingJob,
    TrainingResult,
    Warned,
)
from orchestrator.failures import Failure


def job(name: str, *, epochs: int = 1, seed: int = 0) -> TrainingJob:
    recipe = TrainConfig(epochs=epochs, seed=seed, warmup_epochs=0.0)
    return TrainingJob(name, ModelConfig(), recipe, Path(f"{name}.pt"))


def jobs(*names: str) -> list[TrainingJob]:
    """Jobs that have nothing in common."""
    return [job(name, epochs=epochs) for epochs, name in enumerate(names, 1)]


def epoch(name: str, number: int = 1) -> EpochEnded:
    return EpochEnded(name, {"epoch": number})


def completed(name: str) -> Completed:
    return Completed(name, TrainingResult((), "fp32", "sdpa", "cpu"))


def failed(name: str) -> Failed:
    return Failed(name, Failure("no", "diverged"))


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 10))


async def queue_with(*names: str, workers: tuple[str, ...] = ("one", "two")) -> JobQueue:
    queue = JobQueue()
    await queue.put(jobs(*names))
    for worker in workers:
        await queue.register(worker)
    return queue


async def taken(queue: JobQueue, worker: str) -> str | None:
    jobs = await queue.get(worker)
    assert len(jobs) <= 1
    return jobs[0].id if jobs else None


def test_jobs_are_taken_in_order_and_once() -> None:
    async def test() -> None:
        queue = await queue_with("a", "b", "c")
        assert await queue.get("one") == jobs("a")
        assert await taken(queue, "two") == "b"
        await queue.tell("one", completed("a"))
        assert await taken(queue, "one") == "c"
        await queue.tell("two", completed("b"))
        assert await taken(queue, "two") is None
        assert await queue.pop() is None

    run(test())


def test_jobs_that_are_put_first_keep_their_order() -> None:
    async def test() -> None:
        queue = await queue_with("c", "d")
        await queue.put(jobs("a", "b"), first=True)
        await queue.put(jobs("e"))
        assert [await queue.pop() for _ in range(6)] == ["a", "b", "c", "d", "e", None]

    run(test())


def test_who_is_not_registered_gets_nothing() -> None:
    async def test() -> None:
        queue = await queue_with("a", "b", workers=("one",))
        assert await taken(queue, "two") is None
        assert await taken(queue, "one") == "a"
        await queue.shutdown()
        assert await taken(queue, "one") is None
        await queue.tell("one", completed("a"))  # its last job is still told
        assert (await queue.poll_events())[-1] == completed("a")
        await queue.register("two")  # of the next round
        assert await taken(queue, "one") is None
        assert await taken(queue, "two") == "b"

    run(test())


def test_events_come_in_order_and_once() -> None:
    async def test() -> None:
        queue = await queue_with("a", "b")
        await queue.get("one")
        await queue.tell("one", epoch("a"))
        await queue.get("two")
        await queue.tell("one", Warned("a", "w"))
        await queue.tell("two", failed("b"))
        await queue.tell("one", completed("a"))
        assert await queue.poll_events() == [
            Started("a"),
            epoch("a"),
            Started("b"),
            Warned("a", "w"),
            failed("b"),
            completed("a"),
        ]
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(queue.poll_events(), 0.05)

    run(test())


def test_whoever_waits_for_events_gets_them() -> None:
    async def test() -> None:
        queue = await queue_with("a")
        waiting = asyncio.create_task(queue.poll_events())
        await asyncio.sleep(0.01)
        assert not waiting.done()
        await queue.get("one")
        assert await waiting == [Started("a")]

    run(test())


def test_whoever_waits_can_be_notified_without_events() -> None:
    async def test() -> None:
        queue = await queue_with("a")
        waiting = asyncio.create_task(queue.poll_events())
        await asyncio.sleep(0.01)
        await queue.notify()
        assert await waiting == []
        with pytest.raises(asyncio.TimeoutError):  # once
            await asyncio.wait_for(queue.poll_events(), 0.05)
        await queue.get("one")
        await queue.notify()
        assert await queue.poll_events() == [Started("a")]

    run(test())


def test_a_worker_that_is_gone_releases_its_job_and_all_events() -> None:
    async def test() -> None:
        queue = await queue_with("a", "b", "c")
        await queue.join("one", "here")
        await queue.join("one", "there")
        await queue.get("one")
        await queue.get("two")
        await queue.tell("one", epoch("a"))
        events = [Started("a"), Started("b"), epoch("a")]
        assert await queue.release("one") == Released(events, ["a"], ["here", "there"])
        assert await queue.release("one") == Released([], [], [])
        assert await taken(queue, "one") is None  # a worker taken for dead gets no other job
        await queue.tell("two", completed("b"))
        assert await queue.release("two") == Released([completed("b")], [], [])
        assert await queue.release("never seen") == Released([], [], [])

    run(test())


@pytest.mark.parametrize("event", [epoch("a"), completed("a"), failed("a")])
def test_a_worker_that_was_released_cannot_tell_any_more(event: TrainingEvent) -> None:
    async def test() -> None:
        queue = await queue_with("a", workers=("one", "two"))
        await queue.get("one")
        await queue.release("one")
        await queue.put(jobs("a"), first=True)
        assert await taken(queue, "two") == "a"
        with pytest.raises(KeyError):
            await queue.tell("one", event)
        await queue.tell("two", completed("a"))
        assert await queue.poll_events() == [Started("a"), completed("a")]

    run(test())


@pytest.mark.parametrize("end", [completed("a"), failed("a")])
def test_nothing_is_told_of_a_job_after_its_end(end: TrainingEvent) -> None:
    async def test() -> None:
        queue = await queue_with("a")
        await queue.get("one")
        await queue.tell("one", end)
        with pytest.raises(KeyError):
            await queue.tell("one", epoch("a", 2))
        assert await queue.poll_events() == [Started("a"), end]

    run(test())


def test_workers_that_have_not_begun_are_told_at_shutdown() -> None:
    async def test() -> None:
        queue = await queue_with("a", workers=("one", "two", "three"))
        await queue.join("one", "here")
        await queue.release("three")
        assert await queue.shutdown() == {"two"}
        assert await queue.shutdown() == set()

    run(test())


SEEDS = [job("a", seed=0), job("b", epochs=2), job("c", seed=1), job("d"), job("e", seed=2), job("f", seed=3), job("g")]
"""All but b differ by their seeds alone."""


def test_jobs_of_one_seed_group_are_taken_together() -> None:
    async def test() -> None:
        queue = await queue_with(workers=("one", "two", "three"))
        await queue.put(SEEDS, alone=("d", "g"))
        taken = [job.id for job in await queue.get("one", 3)]
        assert taken == ["a", "c", "e"]
        assert [job.id for job in await queue.get("two", 3)] == ["b"]
        assert [job.id for job in await queue.get("three", 3)] == ["d"]
        await queue.tell("one", completed("c"))
        await queue.tell("one", epoch("e", 2))
        assert await queue.poll_events() == [
            *(Started(name) for name in ("a", "c", "e", "b", "d")), completed("c"), epoch("e", 2)
        ]  # fmt: skip
        with pytest.raises(KeyError):
            await queue.tell("one", epoch("c", 3))
        assert (await queue.release("one")).jobs == ["a", "e"]
        assert [await queue.pop() for _ in range(3)] == ["f", "g", None]

    run(test())


def test_a_worker_that_takes_one_gets_one() -> None:
    async def test() -> None:
        queue = await queue_with(workers=("one",))
        await queue.put([job("a", seed=0), job("b", seed=1)])
        assert [job.id for job in await queue.get("one")] == ["a"]
        await queue.tell("one", completed("a"))
        assert [job.id for job in await queue.get("one")] == ["b"]

    run(test())


def test_what_travels_needs_neither_torch_nor_ray() -> None:
    code = """
import pickle, sys
from pathlib import Path
from lsmha.config import ModelConfig, TrainConfig
from orchestrator.execution.job_queue import JobQueue
from orchestrator.execution.training_job import Completed, TrainingJob, TrainingResult

job = TrainingJob("a", ModelConfig(), TrainConfig(), Path("a.pt"), Path("out"))
event = Completed("a", TrainingResult(({"epoch": 1},), "fp32", "sdpa", "cpu", {"test_loss": 1.0}))
assert pickle.loads(pickle.dumps((job, event))) == (job, event)
assert not {"torch", "ray"} & set(sys.modules), sorted({"torch", "ray"} & set(sys.modules))
"""
    subprocess.run([sys.executable, "-c", code], check=True)
