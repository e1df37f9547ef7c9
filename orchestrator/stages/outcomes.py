"""What became of the tasks of a stage: recorded as they end, and shown."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from orchestrator.failures import Failure
from orchestrator.reporting.progress import Progress


class Outcomes:
    """What became of jobs: keeps each result as it comes, and shows it.

    Args:
        progress: Where to show it.
        keep: Records a result and describes it in a few words.
        keep_failure: Records a failure.
    """

    def __init__(
        self,
        progress: Progress,
        *,
        keep: Callable[[str, Any], str],
        keep_failure: Callable[[str, Failure], None] = lambda *_: None,
    ) -> None:
        self._progress, self._keep, self._keep_failure = progress, keep, keep_failure
        self.completed_ids: list[str] = []
        self.failures: list[str] = []
        """One line each."""

    def progressed(self, job_id: str, activity: str, done: int, total: int) -> None:
        """A job is `done` out of `total` through an activity."""
        self._progress.part(job_id, activity, done, total)

    def completed(self, job_id: str, result: Any) -> None:
        """A job has a result."""
        self._progress.finished(job_id, self._keep(job_id, result))
        self.completed_ids.append(job_id)

    def failed(self, job_id: str, failure: Failure) -> None:
        """A job has none, and will have none."""
        self._keep_failure(job_id, failure)
        self.failures.append(f"{job_id}: {failure.reason}")
        self._progress.finished(job_id, failure.reason, failed=True)
