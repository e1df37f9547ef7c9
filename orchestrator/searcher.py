"""Ray Tune searchers: where Tune gets its next trial from."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, cast

from ray.tune.search import Searcher

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
    """Gives Tune the study's proposals, each with its latency known before it trains.

    Latency wants the device alone, so it is measured in waves: when a proposal of unknown latency comes up, no trial is
    started until the running ones have ended; then a wave of proposals is drawn and measured, and training goes on.
    """

    def __init__(
        self,
        study: ProposalStudy,
        latencies: LatencyCache,
        *,
        num_trials: int,
        wave_size: int,
        make_job: Callable[[Proposal], TrialJob],
        on_measuring: Callable[[int, int], None],
        on_unmeasurable: Callable[[Proposal, str], None],
    ) -> None:
        super().__init__([])
        self._study = study
        self._latencies = latencies
        self._left = num_trials
        self._wave_size = wave_size
        self._make_job = make_job
        self._on_measuring = on_measuring
        self._to_measure = 0
        self._on_unmeasurable = on_unmeasurable
        self._held: deque[Proposal] = deque()
        self._running: set[str] = set()

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """The next job; None while it has to wait, and then Tune asks again."""
        while self._held or self._draw():
            proposal = self._held[0]
            if not self._latencies.knows(proposal.model):
                # Never block here: Tune's loop must go on for the ended trials' actors to leave the device.
                self._measure()
                return None
            self._held.popleft()
            reason = self._latencies.error(proposal.model)
            if reason is None:
                self._running.add(trial_id)
                return {"job": self._make_job(proposal).to_dict()}
            self._on_unmeasurable(proposal, reason)
        return _FINISHED

    def _measure(self) -> None:
        """Go on with the wave's measurement; begin it once no trial is running."""
        if not self._to_measure and not self._running:
            while len(self._held) < self._wave_size and self._draw():
                pass
            self._to_measure = self._latencies.start(proposal.model for proposal in self._held)
        if self._to_measure:
            left = self._latencies.poll()
            self._on_measuring(self._to_measure - left, self._to_measure)
            if not left:
                self._to_measure = 0

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        self._running.discard(trial_id)

    def _draw(self) -> bool:
        """Hold one more proposal; False when the budget or the space is used up."""
        proposal = self._study.ask() if self._left else None
        if proposal is None:
            return False
        self._left -= 1
        self._held.append(proposal)
        return True
