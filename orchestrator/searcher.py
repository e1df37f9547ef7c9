"""Ray Tune searchers: where Tune gets its next trial from."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, cast

from ray.tune.search import Searcher

from lsmha.config import ModelConfig
from orchestrator.latency_cache import LatencyCache
from orchestrator.study import Proposal, ProposalStudy
from orchestrator.trial import TrialJob

_FINISHED = cast(dict[str, Any], Searcher.FINISHED)  # Tune types it as a string, and takes it in place of a config


class JobSearcher(Searcher):
    """Gives Tune a fixed list of jobs."""

    def __init__(self, jobs: Iterable[TrialJob]) -> None:
        super().__init__()
        self._jobs = deque(jobs)

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        return {"job": self._jobs.popleft().to_dict()} if self._jobs else _FINISHED

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        pass

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the ledger is the record, and Tune's experiment state is never restored."""

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("a sweep goes on from its ledger, not from Tune's state")

    def __getstate__(self) -> dict[str, Any]:
        """Empty: Tune pickles what it is given, for a restore that never comes."""
        return {}


class StudySearcher(JobSearcher):
    """Gives Tune the study's proposals whose latency is known; a search is a few Tune runs with one such searcher.

    Latency wants the device alone, so it is measured in waves, between Tune runs: `next_wave` draws the proposals whose
    architectures are to be measured, and a Tune run goes on until the next proposal of unknown latency. Tune can't wait
    inside a run: its loop stands still while a searcher has nothing to give, and idle actors keep their resources.
    """

    def __init__(
        self,
        study: ProposalStudy,
        latencies: LatencyCache,
        *,
        num_trials: int,
        wave_size: int,
        make_job: Callable[[Proposal], TrialJob],
        on_unmeasurable: Callable[[Proposal, str], None],
    ) -> None:
        super().__init__([])
        self._study = study
        self._latencies = latencies
        self._wave_size = wave_size
        self._make_job = make_job
        self._on_unmeasurable = on_unmeasurable
        self._held: deque[Proposal] = deque()
        self._undrawn = num_trials

    @property
    def left(self) -> int:
        """Trials to come, unless the space is used up before."""
        return len(self._held) + self._undrawn

    def next_wave(self) -> list[ModelConfig]:
        """Draw the next wave if there is none, and return its architectures, measured or not; empty at the end."""
        while len(self._held) < self._wave_size and self._draw():
            pass
        return [proposal.model for proposal in self._held]

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        while self._held or self._draw():
            if not self._latencies.knows(self._held[0].model):
                return _FINISHED  # of this Tune run
            proposal = self._held.popleft()
            reason = self._latencies.error(proposal.model)
            if reason is None:
                return {"job": self._make_job(proposal).to_dict()}
            self._on_unmeasurable(proposal, reason)
        return _FINISHED

    def _draw(self) -> bool:
        """Hold one more proposal; False when the budget or the space is used up."""
        proposal = self._study.ask() if self._undrawn else None
        if proposal is None:
            self._undrawn = 0
            return False
        self._undrawn -= 1
        self._held.append(proposal)
        return True
