"""What the actor of a trial and its ranks leave for one another.

The process that keeps it needs neither torch nor Ray Train, so nothing here imports them: it starts in a second, and
takes little memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestrator.execution.training_job import TrainingEvent, TrainingJob


class Mailbox:
    """Between the actor of a trial and its ranks; made an actor by `RankGroup`, and gone with it.

    Args:
        ranks: How many there are.
    """

    def __init__(self, ranks: int) -> None:
        self._ranks = ranks
        self._nodes: list[str] = []
        self._place: str | None = None
        self._rounds: list[Sequence[TrainingJob] | None] = []
        self._wanted = 0
        """Steps of the latest round that were asked for."""
        self._events: asyncio.Queue[list[TrainingEvent]] = asyncio.Queue()
        self._changed = asyncio.Condition()

    async def join(self, node: str, place: str | None) -> None:
        """A rank has begun, on a node, in a placement group."""
        async with self._changed:
            self._nodes.append(node)
            self._place = place
            self._changed.notify_all()

    async def all_joined(self) -> tuple[list[str], str | None]:
        """Waits for all ranks; returns their nodes, and their placement group."""
        async with self._changed:
            await self._changed.wait_for(lambda: len(self._nodes) == self._ranks)
        return self._nodes, self._place

    async def put(self, jobs: Sequence[TrainingJob]) -> None:
        """Jobs for all ranks."""
        await self._add(jobs)

    async def close(self) -> None:
        """There are no more jobs."""
        await self._add(None)

    async def round(self, number: int) -> Sequence[TrainingJob] | None:
        """The jobs that were put there as number 0, 1, ...; waits for them. None at the end.

        Each rank asks by itself: were they to tell each other, they would wait for that in a collective call, which
        has a time limit.
        """
        async with self._changed:
            await self._changed.wait_for(lambda: len(self._rounds) > number)
        return self._rounds[number]

    async def tell(self, events: list[TrainingEvent]) -> None:
        """Rank 0 says what happened."""
        await self._events.put(events)

    async def next_events(self) -> list[TrainingEvent]:
        """Has the ranks make a step; waits until rank 0 has said what happened."""
        async with self._changed:
            self._wanted += 1
            self._changed.notify_all()
        return await self._events.get()

    async def goes_on(self, number: int, steps: int) -> bool:
        """Whether the jobs that were put there as `number` get another step after so many; waits until that is known.
        Every rank hears the same."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._wanted > steps or len(self._rounds) > number + 1)
        return len(self._rounds) == number + 1

    async def _add(self, jobs: Sequence[TrainingJob] | None) -> None:
        async with self._changed:
            self._rounds.append(jobs)
            self._wanted = 0
            self._changed.notify_all()
