"""Jobs in line for training."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from typing import NamedTuple

from orchestrator.execution.training_job import TrainingJob


class _Waiting(NamedTuple):
    job: TrainingJob
    group: str | None
    """Jobs of one group can be trained together; None for one that is to be trained alone."""


class JobLine:
    """Jobs in their order, of which those that differ by their seeds alone can be taken together."""

    def __init__(self) -> None:
        self._line: deque[_Waiting] = deque()

    def __len__(self) -> int:
        return len(self._line)

    def put(self, jobs: Sequence[TrainingJob], *, first: bool = False, alone: Collection[str] = ()) -> None:
        """Put jobs in line, at the end or `first`; those whose ids are in `alone` are taken alone."""
        waiting = [_Waiting(job, None if job.id in alone else job.seed_group) for job in jobs]
        if first:
            self._line.extendleft(reversed(waiting))
        else:
            self._line.extend(waiting)

    def take(self, limit: int = 1) -> tuple[TrainingJob, ...]:
        """The next job, and up to `limit` in all that can be trained together with it; none where the line is empty."""
        if not self._line:
            return ()
        first = self._line.popleft()
        taken = [first]
        if first.group is not None and limit > 1:  # which walks through all of the line
            taken += [waiting for waiting in self._line if waiting.group == first.group][: limit - 1]
            self._line = deque(waiting for waiting in self._line if waiting not in taken)
        return tuple(waiting.job for waiting in taken)
