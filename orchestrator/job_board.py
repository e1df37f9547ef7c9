"""Where crews take their jobs from and tell what became of them: an actor between driver and workers."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

Event = tuple[str, str, Any]
"""What happened (`started`, `epoch`, `warning`, `completed`, `failed`), to which job, and the particulars."""


class Handover(NamedTuple):
    """What a crew that is gone has left."""

    news: list[Event]
    """Events not told to the driver before, of all crews."""
    job: str | None
    """The job that it took and did not end."""
    nodes: list[str]
    """Ids of the nodes that its processes ran on."""


class JobBoard:
    """Jobs in line, who took which, and news for the driver; made an actor by `crews.py`.

    It holds nothing that matters for longer: jobs come from the driver, results are recorded by it. Imports neither
    torch nor Ray, so it starts in no time.
    """

    def __init__(self) -> None:
        self._line: deque[dict[str, Any]] = deque()
        self._enrolled: set[str] = set()
        self._nodes: dict[str, list[str]] = {}
        self._taken: dict[str, str] = {}
        self._news: list[Event] = []
        self._has_news = asyncio.Event()

    async def post(self, jobs: Sequence[dict[str, Any]], *, first: bool = False) -> None:
        """Put jobs (each with an `id`) in line: at the end, or `first`."""
        if first:
            self._line.extendleft(reversed(jobs))
        else:
            self._line.extend(jobs)

    async def enrol(self, crew: str) -> None:
        """Let a crew take jobs."""
        self._enrolled.add(crew)

    async def join(self, crew: str, node: str) -> None:
        """A process of a crew has begun, on a node."""
        self._nodes.setdefault(crew, []).append(node)

    async def dismiss_all(self) -> set[str]:
        """Give no crew of now another job; returns those that have not begun yet."""
        waiting = self._enrolled - self._nodes.keys()
        self._enrolled.clear()
        return waiting

    async def withdraw(self) -> str | None:
        """Take the first job out of the line, for no crew; returns its id."""
        return self._line.popleft()["id"] if self._line else None

    async def take(self, crew: str) -> dict[str, Any] | None:
        """Give a crew its next job; None when there is none left for it."""
        if crew not in self._enrolled or not self._line:
            return None
        job = self._line.popleft()
        self._taken[crew] = job["id"]
        self._tell("started", job["id"], None)
        return job

    async def tell(self, crew: str, kind: str, particulars: Any) -> None:
        """A crew says what happened to the job that it took."""
        self._tell(kind, self._taken[crew], particulars)
        if kind in ("completed", "failed"):
            del self._taken[crew]

    async def news(self) -> list[Event]:
        """What happened since the last call; waits until something has."""
        await self._has_news.wait()
        return self._all_news()

    async def wake(self) -> None:
        """Let whoever waits for news have those of now, even if there are none."""
        self._has_news.set()

    async def hand_over(self, crew: str) -> Handover:
        """A crew is gone: its job, if it had not ended one, and all news."""
        self._enrolled.discard(crew)
        return Handover(self._all_news(), self._taken.pop(crew, None), self._nodes.pop(crew, []))

    def _tell(self, kind: str, job: str, particulars: Any) -> None:
        self._news.append((kind, job, particulars))
        self._has_news.set()

    def _all_news(self) -> list[Event]:
        news, self._news = self._news, []
        self._has_news.clear()
        return news
