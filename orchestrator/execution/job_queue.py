"""Where workers take their jobs from and tell what became of them: an actor between driver and workers."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Collection, Sequence
from typing import NamedTuple

from orchestrator.execution.training_job import Completed, Failed, Started, TrainingEvent, TrainingJob


class Queued(NamedTuple):
    """A job in line."""

    job: TrainingJob
    group: str | None
    """Jobs of one group can be done together; None for one that is to be done alone."""


class Released(NamedTuple):
    """What a worker that is gone has left."""

    events: list[TrainingEvent]
    """Events not told to the driver before, of all workers."""
    jobs: list[str]
    """The jobs that it took and did not end."""
    nodes: list[str]
    """Ids of the nodes that its processes ran on."""


class JobQueue:
    """Jobs in line, who took which, and events for the driver; made an actor by `worker_pool.py`.

    It holds nothing that matters for longer: jobs come from the driver, results are recorded by it. Imports neither
    torch nor Ray, so it starts in no time.
    """

    def __init__(self) -> None:
        self._line: deque[Queued] = deque()
        self._registered: set[str] = set()
        self._nodes: dict[str, list[str]] = {}
        self._taken: dict[str, list[str]] = {}
        self._events: list[TrainingEvent] = []
        self._has_events = asyncio.Event()

    async def put(self, jobs: Sequence[TrainingJob], *, first: bool = False, alone: Collection[str] = ()) -> None:
        """Put jobs in line, at the end or `first`; those whose ids are in `alone` are not done together with others."""
        queued = [Queued(job, None if job.id in alone else job.seed_group) for job in jobs]
        if first:
            self._line.extendleft(reversed(queued))
        else:
            self._line.extend(queued)

    async def register(self, worker: str) -> None:
        """Let a worker take jobs."""
        self._registered.add(worker)

    async def join(self, worker: str, node: str) -> None:
        """A process of a worker has begun, on a node."""
        self._nodes.setdefault(worker, []).append(node)

    async def shutdown(self) -> set[str]:
        """Give no worker of now another job; returns those that have not begun yet."""
        waiting = self._registered - self._nodes.keys()
        self._registered.clear()
        return waiting

    async def pop(self) -> str | None:
        """Take the first job out of the line, for no worker; returns its id."""
        return self._line.popleft().job.id if self._line else None

    async def get(self, worker: str, limit: int = 1) -> list[TrainingJob]:
        """Give a worker its next job, and up to `limit` in all that can be done together with it; none when there is
        none left for it."""
        if worker not in self._registered or not self._line:
            return []
        first = self._line.popleft()
        taken = [first]
        if first.group is not None:
            taken += [queued for queued in self._line if queued.group == first.group][: limit - 1]
            self._line = deque(queued for queued in self._line if queued not in taken)
        jobs = [queued.job for queued in taken]
        self._taken[worker] = [job.id for job in jobs]
        for job in jobs:
            self._keep(Started(job.id))
        return jobs

    async def tell(self, worker: str, event: TrainingEvent) -> None:
        """A worker says what happened to a job that it took.

        Raises:
            KeyError: The job is not, or no more, the worker's.
        """
        taken = self._taken.get(worker, [])
        if event.job_id not in taken:
            raise KeyError(event.job_id)
        self._keep(event)
        if isinstance(event, Completed | Failed):
            taken.remove(event.job_id)

    async def poll_events(self) -> list[TrainingEvent]:
        """What happened since the last call; waits until something has."""
        await self._has_events.wait()
        return self._all_events()

    async def notify(self) -> None:
        """Let whoever waits for events have those of now, even if there are none."""
        self._has_events.set()

    async def release(self, worker: str) -> Released:
        """A worker is gone: its jobs that had not ended, and all events."""
        self._registered.discard(worker)
        return Released(self._all_events(), self._taken.pop(worker, []), self._nodes.pop(worker, []))

    def _keep(self, event: TrainingEvent) -> None:
        self._events.append(event)
        self._has_events.set()

    def _all_events(self) -> list[TrainingEvent]:
        events, self._events = self._events, []
        self._has_events.clear()
        return events
