"""Jobs in line, who took which, and what the driver hears of it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from orchestrator.execution.job_queue import Handover, JobBoard


def jobs(*names: str) -> list[dict[str, Any]]:
    return [{"id": name, "more": name.upper()} for name in names]


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 10))


async def board_with(*names: str, crews: tuple[str, ...] = ("one", "two")) -> JobBoard:
    board = JobBoard()
    await board.post(jobs(*names))
    for crew in crews:
        await board.enrol(crew)
    return board


async def taken(board: JobBoard, crew: str) -> str | None:
    jobs = await board.take(crew)
    assert len(jobs) <= 1
    return jobs[0]["id"] if jobs else None


def test_jobs_are_taken_in_order_and_once() -> None:
    async def test() -> None:
        board = await board_with("a", "b", "c")
        assert await board.take("one") == [{"id": "a", "more": "A"}]
        assert await taken(board, "two") == "b"
        await board.tell("one", "a", "completed", 1)
        assert await taken(board, "one") == "c"
        await board.tell("two", "b", "completed", 2)
        assert await taken(board, "two") is None
        assert await board.withdraw() is None

    run(test())


def test_jobs_that_are_posted_first_keep_their_order() -> None:
    async def test() -> None:
        board = await board_with("c", "d")
        await board.post(jobs("a", "b"), first=True)
        await board.post(jobs("e"))
        assert [await board.withdraw() for _ in range(6)] == ["a", "b", "c", "d", "e", None]

    run(test())


def test_who_is_not_enrolled_gets_nothing() -> None:
    async def test() -> None:
        board = await board_with("a", "b", crews=("one",))
        assert await taken(board, "two") is None
        assert await taken(board, "one") == "a"
        await board.dismiss_all()
        assert await taken(board, "one") is None
        await board.tell("one", "a", "completed", "its last job is still told")
        assert (await board.news())[-1] == ("completed", "a", "its last job is still told")
        await board.enrol("two")  # of the next round
        assert await taken(board, "one") is None
        assert await taken(board, "two") == "b"

    run(test())


def test_news_come_in_order_and_once() -> None:
    async def test() -> None:
        board = await board_with("a", "b")
        await board.take("one")
        await board.tell("one", "a", "epoch", {"epoch": 1})
        await board.take("two")
        await board.tell("one", "a", "warning", "w")
        await board.tell("two", "b", "failed", "no")
        await board.tell("one", "a", "completed", {"x": 1})
        assert await board.news() == [
            ("started", "a", None),
            ("epoch", "a", {"epoch": 1}),
            ("started", "b", None),
            ("warning", "a", "w"),
            ("failed", "b", "no"),
            ("completed", "a", {"x": 1}),
        ]
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(board.news(), 0.05)

    run(test())


def test_whoever_waits_for_news_gets_them() -> None:
    async def test() -> None:
        board = await board_with("a")
        waiting = asyncio.create_task(board.news())
        await asyncio.sleep(0.01)
        assert not waiting.done()
        await board.take("one")
        assert await waiting == [("started", "a", None)]

    run(test())


def test_whoever_waits_can_be_woken_without_news() -> None:
    async def test() -> None:
        board = await board_with("a")
        waiting = asyncio.create_task(board.news())
        await asyncio.sleep(0.01)
        await board.wake()
        assert await waiting == []
        with pytest.raises(asyncio.TimeoutError):  # once
            await asyncio.wait_for(board.news(), 0.05)
        await board.take("one")
        await board.wake()
        assert await board.news() == [("started", "a", None)]

    run(test())


def test_a_crew_that_is_gone_hands_over_its_job_and_all_news() -> None:
    async def test() -> None:
        board = await board_with("a", "b", "c")
        await board.join("one", "here")
        await board.join("one", "there")
        await board.take("one")
        await board.take("two")
        await board.tell("one", "a", "epoch", 1)
        news = [("started", "a", None), ("started", "b", None), ("epoch", "a", 1)]
        assert await board.hand_over("one") == Handover(news, ["a"], ["here", "there"])
        assert await board.hand_over("one") == Handover([], [], [])
        assert await taken(board, "one") is None  # a crew taken for dead gets no other job
        await board.tell("two", "b", "completed", 2)
        assert await board.hand_over("two") == Handover([("completed", "b", 2)], [], [])
        assert await board.hand_over("never seen") == Handover([], [], [])

    run(test())


@pytest.mark.parametrize("kind", ["epoch", "completed", "failed"])
def test_a_crew_that_was_handed_over_cannot_tell_any_more(kind: str) -> None:
    async def test() -> None:
        board = await board_with("a", crews=("one", "two"))
        await board.take("one")
        await board.hand_over("one")
        await board.post(jobs("a"), first=True)
        assert await taken(board, "two") == "a"
        with pytest.raises(KeyError):
            await board.tell("one", "a", kind, "late")
        await board.tell("two", "a", "completed", "in time")
        assert await board.news() == [("started", "a", None), ("completed", "a", "in time")]

    run(test())


@pytest.mark.parametrize("end", ["completed", "failed"])
def test_nothing_is_told_of_a_job_after_its_end(end: str) -> None:
    async def test() -> None:
        board = await board_with("a")
        await board.take("one")
        await board.tell("one", "a", end, 1)
        with pytest.raises(KeyError):
            await board.tell("one", "a", "epoch", 2)
        assert [kind for kind, *_ in await board.news()] == ["started", end]

    run(test())


def test_crews_that_have_not_begun_are_told_when_all_are_dismissed() -> None:
    async def test() -> None:
        board = await board_with("a", crews=("one", "two", "three"))
        await board.join("one", "here")
        await board.hand_over("three")
        assert await board.dismiss_all() == {"two"}
        assert await board.dismiss_all() == set()

    run(test())


def stacked(**stacks: str | None) -> list[dict[str, Any]]:
    return [{"id": name, "stack": stack} for name, stack in stacks.items()]


def test_jobs_of_one_stack_are_taken_together() -> None:
    async def test() -> None:
        board = await board_with(crews=("one", "two", "three"))
        await board.post(stacked(a="x", b="y", c="x", d=None, e="x", f="x", g=None))
        taken = [job["id"] for job in await board.take("one", 3)]
        assert taken == ["a", "c", "e"]
        assert [job["id"] for job in await board.take("two", 3)] == ["b"]
        assert [job["id"] for job in await board.take("three", 3)] == ["d"]  # None is no stack
        await board.tell("one", "c", "completed", 1)
        await board.tell("one", "e", "epoch", 2)
        assert [event[:2] for event in await board.news()] == [
            ("started", "a"), ("started", "c"), ("started", "e"), ("started", "b"), ("started", "d"),
            ("completed", "c"), ("epoch", "e"),
        ]  # fmt: skip
        with pytest.raises(KeyError):
            await board.tell("one", "c", "epoch", 3)
        assert (await board.hand_over("one")).jobs == ["a", "e"]
        assert [await board.withdraw() for _ in range(3)] == ["f", "g", None]

    run(test())


def test_a_crew_that_takes_one_gets_one() -> None:
    async def test() -> None:
        board = await board_with(crews=("one",))
        await board.post(stacked(a="x", b="x"))
        assert [job["id"] for job in await board.take("one")] == ["a"]
        await board.tell("one", "a", "completed", 1)
        assert [job["id"] for job in await board.take("one")] == ["b"]

    run(test())
