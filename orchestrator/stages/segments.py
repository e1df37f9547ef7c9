"""A search whose trials pause at rungs: from what a strategy decides to what is trained, and back."""

from __future__ import annotations

import time
from collections.abc import Iterable
from functools import partial

import numpy as np

from lsmha.models import model_cost
from orchestrator.config.sweep import SweepConfig
from orchestrator.errors import UserError
from orchestrator.execution.latency import LatencyCache
from orchestrator.execution.training_job import Metrics, TrainingJob
from orchestrator.run_folder.content_hash import architecture_hash, training_hash
from orchestrator.run_folder.ledger import Ledger
from orchestrator.run_folder.records import DecidedSegment, DecisionRecord, TrialRecord, trial_id
from orchestrator.search.build import epochs_to_train, rungs_of, trained_metric
from orchestrator.search.front.decide import decide
from orchestrator.search.front.features import structure_of
from orchestrator.search.front.moasha import decide_by_rank
from orchestrator.search.front.planner import Decision, Planner, Strategy
from orchestrator.search.front.problem import FrontProblem, Segment, unit_spread
from orchestrator.search.space import Point, SearchSpace
from orchestrator.stages.paused_checkpoints import PausedCheckpoints
from orchestrator.stages.recorder import Entry, KnownLatency


class SegmentSearch:
    """What is to be trained next, by what the ledger has; recorded before it is trained.

    A planner knows points by their place among those that can be trained; all else knows trials, which are numbered as
    they begin.

    Args:
        latencies: Of the whole space, measured.
        workers: Trials at a time.

    Raises:
        UserError: No latency could be measured.
    """

    def __init__(
        self, config: SweepConfig, space: SearchSpace, ledger: Ledger, latencies: LatencyCache, *, workers: int
    ) -> None:
        self._config, self._space, self._ledger = config, space, ledger
        assert ledger.fingerprint is not None
        self._data = ledger.fingerprint.data
        recipes = [space.build(point) for point in space.points]
        self._usable = [place for place, (model, _) in enumerate(recipes) if latencies.error(model) is None]
        self.unmeasured = [error for model, _ in recipes if (error := latencies.error(model)) is not None]
        """Why configurations are left out, one reason for each."""
        if not self._usable:
            raise UserError(f"latency: no configuration of the space could be measured: {self.unmeasured[0]}")
        self._recipes = [recipes[place] for place in self._usable]
        self._latencies = [
            KnownLatency(architecture_hash(model), latencies.latency_ms(model)) for model, _ in self._recipes
        ]
        self.grid_epochs = len(self._usable) * config.train.epochs
        """What it would take to train all to their end."""
        self.budget = epochs_to_train(config, len(self._usable))
        """What it may take."""
        self._trained, self._sign = trained_metric(config)
        self._places = {space.key(space.points[place]): index for index, place in enumerate(self._usable)}
        self._trials: dict[int, str] = {}
        """Id of the trial of each point that has begun."""
        self._planner = self._new_planner(workers)
        self._checkpoints = PausedCheckpoints(ledger, config.search.paused_gib)
        self._started = time.monotonic()
        self._elapsed_before = ledger.decisions[-1].elapsed_s if ledger.decisions else 0.0
        for record in ledger.decisions:
            self._adopt(record)
        begun = [trial for trial in ledger.begun if space.key(trial.point) in self._places]
        self._adopt_lost(begun)
        for trial in begun:
            self._note(trial)
        self._bound_checkpoints()

    @property
    def expected_gain(self) -> float | None:
        """Of the front's hypervolume by the best that could be trained next, over what it is; None if that is open."""
        gain = self._planner.expected_gain
        return gain if gain is not None and gain < 10 else None  # before there is a front, any is as good as infinite

    @property
    def outcome(self) -> str:
        """What was spent, and what there is still to gain, in one line."""
        spent, whole = self._planner.epochs, self.grid_epochs
        gain = self.expected_gain
        left = "" if gain is None else f"; a further trial is expected to add {gain:.2%} to the front's hypervolume"
        dropped = sum(self._ledger.is_dropped(trial) for trial in self._ledger.pauses)
        lost = f"; {dropped} checkpoints of trials that pause were dropped (search.paused_gib)" if dropped else ""
        return f"{spent:,} epochs, {spent / whole:.1%} of the grid's {whole:,}{left}{lost}"

    def under_way(self) -> list[Entry]:
        """What was decided on, and has no result yet."""
        left = {segment.point: segment for segment in self._segments() if not self._has_result(segment)}
        return [self._entry(segment) for segment in left.values()]

    def decide(self) -> list[Entry]:
        """What is to be trained besides what is; nothing where that depends on results that are not there yet."""
        entries: list[Entry] = []
        while not self._is_out_of_time() and (decision := self._planner.next()) is not None:
            for segment in decision.segments:
                self._trials.setdefault(segment.point, self._next_id())
            segments = [
                DecidedSegment(self._trials[segment.point], self._point(segment.point), *_details(segment))
                for segment in decision.segments
            ]
            self._ledger.add(DecisionRecord(decision.number, decision.at, segments, round(self._elapsed_s(), 3)))
            entries += [self._entry(segment) for segment in decision.segments]
        return entries

    def tell(self, record: TrialRecord) -> None:
        """A trial got to a rung or to its end, or it failed."""
        self._note(record)
        if record.paused:
            self._bound_checkpoints()

    def _note(self, record: TrialRecord) -> None:
        place = self._places[self._space.key(record.point)]
        scores = {int(epoch["epoch"]): self._sign * epoch[self._trained] for epoch in record.curve}
        for rung in self._planner.problem.rungs:
            if rung in scores:
                self._planner.tell(place, rung, scores[rung])
        if record.failed:
            for segment in self._segments():
                if segment.point == place and segment.to_epoch not in scores:
                    self._planner.tell(place, segment.to_epoch, None)

    def _bound_checkpoints(self) -> None:
        going_on = {segment.point for segment in self._segments() if not self._has_result(segment)}
        waiting = {
            place: trial
            for place, trial in self._trials.items()
            if trial in self._ledger.pauses and place not in going_on
        }
        if self._checkpoints.excess(list(waiting.values())) > 0:
            order = self._planner.least_promising_first(waiting)
            self._checkpoints.drop([waiting[place] for place in order])

    def _new_planner(self, workers: int) -> Planner:
        config, space = self._config, self._space
        costs = [model_cost(model) for model, _ in self._recipes]
        known = {
            "latency_ms": np.array([latency.latency_ms for latency in self._latencies], dtype=float),
            "params": np.array([cost.params for cost in costs], dtype=float),
            "macs": np.array([cost.macs for cost in costs], dtype=float),
        }
        metric = next(objective.metric for objective in config.objectives if objective.metric in known)
        problem = FrontProblem(
            known[metric], structure_of(space.points)[self._usable], unit_spread([*known.values()]), rungs_of(config)
        )
        included = space.checked_points(config.finalists.include, field="finalists.include")
        strategy: Strategy = partial(decide, seed=config.seed)
        if config.search.strategy == "moasha":
            strategy = partial(decide_by_rank, seed=config.seed, eta=config.search.reduction_factor)
        return Planner(
            problem,
            strategy,
            workers=workers,
            epoch_cost=known["latency_ms"],  # what is slow to use is slow to train
            max_epochs=self.budget,
            min_gain=config.search.min_gain,
            asked=[self._places[key] for point in included if (key := space.key(point)) in self._places],
        )

    def _adopt(self, record: DecisionRecord) -> None:
        segments = []
        for part in record.segments:
            place = self._places.get(self._space.key(part.point))
            if place is None:  # its latency was lost, and cannot be measured any more
                continue
            self._trials[place] = part.trial
            segments.append(
                Segment(place, part.from_epoch, part.to_epoch, part.why, part.mean, part.sd, part.gain)  # type: ignore[arg-type]  # of our own records
            )
        self._planner.adopt(Decision(record.number, record.at, tuple(segments)))

    def _adopt_lost(self, trials: Iterable[TrialRecord]) -> None:
        """The record of a decision can be damaged and set aside: the trial's own says what it was."""
        decided: dict[int, int] = {}
        for segment in self._segments():
            decided[segment.point] = max(segment.to_epoch, decided.get(segment.point, 0))
        for trial in trials:
            place = self._places[self._space.key(trial.point)]
            reached = trial.epochs if trial.paused else self._config.train.epochs
            if (known := decided.get(place, 0)) < reached:
                self._trials[place] = trial.id
                last = self._planner.decisions[-1] if self._planner.decisions else None
                number, at = (0, 0.0) if last is None else (last.number + 1, last.at)
                self._planner.adopt(Decision(number, at, (Segment(place, known, reached, "gain"),)))

    def _next_id(self) -> str:
        return trial_id(1 + max((int(trial[1:]) for trial in self._trials.values()), default=-1))

    def _segments(self) -> list[Segment]:
        return [segment for decision in self._planner.decisions for segment in decision.segments]

    def _has_result(self, segment: Segment) -> bool:
        trial = self._trials[segment.point]
        if self._ledger.tried(trial) is not None:
            return True
        pauses = self._ledger.pauses.get(trial)
        return pauses is not None and pauses.epochs >= segment.to_epoch

    def _entry(self, segment: Segment) -> Entry:
        model, train = self._recipes[segment.point]
        trial, point = self._trials[segment.point], self._point(segment.point)
        pause_at = None if segment.to_epoch == train.epochs else segment.to_epoch
        job = TrainingJob(trial, model, train, self._ledger.checkpoint_path(trial), pause_at=pause_at)
        key = training_hash(model, train, self._data)
        before = self._ledger.pauses.get(trial)
        curve: dict[int, Metrics] = {int(e["epoch"]): e for e in before.curve} if before is not None else {}
        decided = {"why": segment.why, "predicted": segment.mean, "predicted_sd": segment.sd}
        if segment.mean is not None:
            decided["predicted"] = self._sign * segment.mean
        return Entry(job, key, trial, point, self._latencies[segment.point], curve, decided)

    def _point(self, place: int) -> Point:
        return self._space.points[self._usable[place]]

    def _elapsed_s(self) -> float:
        return self._elapsed_before + time.monotonic() - self._started

    def _is_out_of_time(self) -> bool:
        limit = self._config.search.max_hours
        return limit is not None and self._elapsed_s() >= 3600 * limit


def _details(segment: Segment) -> tuple[int, int, str, float | None, float | None, float | None]:
    return segment.from_epoch, segment.to_epoch, segment.why, segment.mean, segment.sd, segment.gain
