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
    jobs: list[str]
    """The jobs that it took and did not end."""
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
        self._taken: dict[str, list[str]] = {}
        self._news: list[Event] = []
        self._has_news = asyncio.Event()

    async def post(self, jobs: Sequence[dict[str, Any]], *, first: bool = False) -> None:
        """Put jobs (each with an `id`, and maybe a `stack`) in line: at the end, or `first`."""
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

    async def take(self, crew: str, most: int = 1) -> list[dict[str, Any]]:
        """Give a crew its next job, and up to `most` in all that can be done together with it, being of one `stack`;
        none when there is none left for it."""
        if crew not in self._enrolled or not self._line:
            return []
        stack = self._line[0].get("stack")
        jobs = [self._line.popleft()]
        if stack is not None:
            jobs += [job for job in self._line if job.get("stack") == stack][: most - 1]
            self._line = deque(job for job in self._line if job not in jobs)
        self._taken[crew] = [job["id"] for job in jobs]
        for job in jobs:
            self._tell("started", job["id"], None)
        return jobs

    async def tell(self, crew: str, job: str, kind: str, particulars: Any) -> None:
        """A crew says what happened to a job that it took.

        Raises:
            KeyError: The job is not, or no more, the crew's.
        """
        taken = self._taken.get(crew, [])
        if job not in taken:
            raise KeyError(job)
        self._tell(kind, job, particulars)
        if kind in ("completed", "failed"):
            taken.remove(job)

    async def news(self) -> list[Event]:
        """What happened since the last call; waits until something has."""
        await self._has_news.wait()
        return self._all_news()

    async def wake(self) -> None:
        """Let whoever waits for news have those of now, even if there are none."""
        self._has_news.set()

    async def hand_over(self, crew: str) -> Handover:
        """A crew is gone: its jobs that had not ended, and all news."""
        self._enrolled.discard(crew)
        return Handover(self._all_news(), self._taken.pop(crew, []), self._nodes.pop(crew, []))

    def _tell(self, kind: str, job: str, particulars: Any) -> None:
        self._news.append((kind, job, particulars))
        self._has_news.set()

    def _all_news(self) -> list[Event]:
        news, self._news = self._news, []
        self._has_news.clear()
        return news
