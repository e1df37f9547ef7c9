"""The stages of a sweep: search the space, train and test the finalists, analyze them, form their committees."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any

import ray

from lsmha.config import ModelConfig, TrainConfig
from lsmha.data import Dataset
from lsmha.models import model_cost
from lsmha.training import EpochMetrics
from lsmha.training.checkpoints import remove_checkpoint
from lsmha.training.logits import logits_path
from orchestrator.cluster.capacity import Capacity, concurrent_trials
from orchestrator.config.sweep import ResourcesConfig, SweepConfig
from orchestrator.execution.latency import LatencyCache, architecture_key
from orchestrator.execution.worker import GPU_MEMORY, UTILIZATION, TrialJob
from orchestrator.execution.worker_pool import Crews
from orchestrator.reporting.metrics import SweepMetrics
from orchestrator.reporting.progress import Progress
from orchestrator.run_folder.content_hash import training_key
from orchestrator.run_folder.ledger import Ledger
from orchestrator.run_folder.records import TrialRecord, Wave, finalist_id, trial_id
from orchestrator.search.build import num_trials
from orchestrator.search.space import Point, SearchSpace
from orchestrator.search.study import Proposal, ProposalStudy
from orchestrator.stages.analysis import analyze_finalists
from orchestrator.stages.committees import form_committees_of


@dataclass(frozen=True)
class _Latency:
    """What a record says of latency: fields of `TrialRecord`."""

    architecture: str
    latency_ms: float | None
    latency_p25_ms: float | None = None
    latency_p75_ms: float | None = None


@dataclass(frozen=True)
class _Entry:
    """A job under way, with what the record needs besides its result."""

    job: TrialJob
    key: str
    trial: str
    point: Point
    latency: _Latency
    curve: dict[int, dict[str, float]] = field(default_factory=dict)
    """Metrics of the epochs so far, by epoch: a run that was started again may repeat one."""


class _Recorder:
    """Turns the events of jobs into records, progress and metrics."""

    def __init__(
        self,
        entries: dict[str, _Entry],
        progress: Progress,
        metrics: SweepMetrics,
        *,
        workers: int,
        add: Callable[[TrialRecord], None],
    ) -> None:
        self._entries, self._progress, self._metrics = entries, progress, metrics
        self._workers, self._add = workers, add

    def started(self, job_id: str) -> None:
        entry = self._entries[job_id]
        self._progress.started(job_id, entry.point, entry.job.train.epochs)
        self._metrics.started(job_id, finalist=job_id != entry.trial)

    def epoch_ended(self, job_id: str, told: dict[str, Any]) -> None:
        self._metrics.epoch_ended(job_id, told.get("images_per_s"), told.get(GPU_MEMORY))
        metrics = {name: value for name, value in told.items() if name not in (GPU_MEMORY, UTILIZATION)}
        self._entries[job_id].curve[metrics["epoch"]] = metrics
        self._progress.epoch_ended(job_id, told)

    def warned(self, job_id: str, warning: str) -> None:
        self._progress.say(f"{job_id}: {warning}")

    def completed(self, job_id: str, result: dict[str, Any]) -> None:
        if (problem := self._problem(job_id, result)) is not None:
            self.failed(job_id, problem)
            return
        last = result["curve"][-1]
        self._end(
            job_id,
            status="completed",
            epochs=last["epoch"],
            seconds=sum(epoch["seconds"] for epoch in result["curve"]),
            val_accuracy=last["val_accuracy"],
            val_loss=last["val_loss"],
            test_accuracy=result.get("test_accuracy"),
            test_loss=result.get("test_loss"),
            precision=result["precision"],
            attention=result["attention"],
            train_device=result["train_device"],
            curve=result["curve"],
        )

    def failed(self, job_id: str, reason: str) -> None:
        curve = [epoch for epoch in self._entries[job_id].curve.values() if bad_metric(epoch) is None]
        seconds = sum(epoch["seconds"] for epoch in curve)
        self._end(job_id, status="failed", epochs=len(curve), seconds=seconds, curve=curve, error=reason)

    def _problem(self, job_id: str, result: dict[str, Any]) -> str | None:
        """Why a result is none, in one line."""
        if not result.get("curve"):
            return "its training ended without a result"
        for metrics in [
            *result["curve"],
            {name: result[name] for name in ("test_accuracy", "test_loss") & result.keys()},
        ]:
            if (problem := bad_metric(metrics)) is not None:
                return problem
        folder = self._entries[job_id].job.export
        if folder is not None and not logits_path(folder, "test").is_file():
            return f"its files are not in {folder}: the run folder must be on storage that all nodes share"
        return None

    def _end(self, job_id: str, **outcome: Any) -> None:
        entry = self._entries.pop(job_id)
        cost = model_cost(entry.job.model)
        record = TrialRecord(
            id=job_id,
            key=entry.key,
            trial=entry.trial,
            point=entry.point,
            seed=entry.job.train.seed,
            params=cost.params,
            macs=cost.macs,
            **vars(entry.latency),
            workers=self._workers,
            **outcome,
        )
        self._add(record)
        remove_checkpoint(entry.job.checkpoint)
        self._progress.ended(record)
        self._metrics.ended(record)


class Sweep:
    """One run of the stages over a ledger, on a cluster that Ray is connected to.

    Each stage does what the ledger, in which a session has begun, does not have yet. So a sweep goes on after a break
    by going through them again.
    """

    def __init__(
        self,
        config: SweepConfig,
        space: SearchSpace,
        dataset: Dataset,
        ledger: Ledger,
        capacity: Capacity,
        progress: Progress,
        metrics: SweepMetrics,
    ) -> None:
        self.config, self.space, self.ledger = config, space, ledger
        self.capacity, self.progress, self.metrics = capacity, progress, metrics
        assert ledger.origin is not None
        self._data = ledger.origin.data
        self._arrays = ray.put(dataset.to_arrays())
        self._crews = Crews(self._arrays, storage=ledger.folder / "ray")
        self._tables_due = time.monotonic()
        self._latencies = LatencyCache(
            config.latency,
            capacity,
            use_gpu=config.latency_on_gpu(),
            known=ledger.latencies,
            on_measured=ledger.add_latency,
        )

    def search(self, study: ProposalStudy) -> None:
        """Train the study's proposals, wave after wave, each after its latency was measured.

        What was proposed in earlier sessions is proposed again, and the results are told again in the same order: the
        study then is where it was.
        """
        self.progress.stage("search", num_trials(self.config, self.space))
        for record in self.ledger.trials:
            self.progress.was_ended(record)
        for proposals in self._waves(study):
            self._try(proposals)
            for proposal in proposals:
                ended = self.ledger.ended(trial_id(proposal.number), self._key(proposal.model, proposal.train))
                assert ended is not None
                study.tell(proposal.number, vars(ended) if ended.completed else None)

    def measure_front(self) -> None:
        """Measure the latency of all on the front beside one another, in rounds, until no other trial comes to it."""
        if self.config.latency.rounds == 1 or "latency_ms" not in (one.metric for one in self.config.objectives):
            return
        errors: dict[str, str] = {}
        while new := {
            record.architecture: self.space.build(record.point)[0]
            for record in self.ledger.front()
            if record.latency_p25_ms is None and record.architecture not in errors
        }:
            found = self._latencies.measure_in_rounds(
                new.values(), on_measured=self.ledger.add_front_latency, on_progress=self.progress.making_rounds
            )
            errors |= found
            for reason in sorted(set(found.values())):
                self.progress.say(f"the front's latency stays as the search measured it: {reason}")

    def train_finalists(self) -> None:
        """Train the front's configurations, and those to include, at the full budget with every seed, and test once."""
        entries: dict[str, _Entry] = {}
        ended = []
        for record in self._finalist_trials():
            model, train = self.space.build(record.point)
            for seed in self.config.finalists.seeds:
                run_id = finalist_id(record.id, seed)
                recipe = train.model_copy(update={"seed": seed, "epochs": self.config.finalist_epochs()})
                key = self._key(model, recipe)
                if (before := self.ledger.ended(run_id, key)) is not None:
                    ended.append(before)
                    continue
                checkpoint, folder = self.ledger.checkpoint_path(run_id), self.ledger.finalist_folder(run_id)
                job = TrialJob(run_id, model, recipe, checkpoint, export=folder)
                latency = _Latency(**{one.name: getattr(record, one.name) for one in fields(_Latency)})
                entries[run_id] = _Entry(job, key, record.id, record.point, latency)
        self.progress.stage("finalists", len(entries) + len(ended))
        for record in ended:
            self.progress.was_ended(record)
        self._train(entries, resources=self.config.finalist_resources(), add=self.ledger.add_finalist)

    def analyze_finalists(self) -> None:
        """Read out of every trained finalist what its heads, nodes and filters recognize."""
        if self.config.analysis.enabled:
            analyze_finalists(self.config, self.ledger, self.progress, arrays=self._arrays, repeat=False)

    def form_committees(self) -> bool:
        """Let the finalists decide together, from their stored logits; returns whether that went well."""
        if not self.config.committees.enabled:
            return True
        return form_committees_of(self.ledger, self.progress, arrays=self._arrays)

    def _waves(self, study: ProposalStudy) -> Iterator[list[Proposal]]:
        """Proposals of each wave: those of earlier sessions first, then new ones, recorded before they are tried."""
        proposed = 0
        for wave in self.ledger.waves:
            # The record of a wave can be damaged and set aside: its trials say what they were proposed as.
            if lost := self._asked(study, range(proposed, wave.first)):
                yield lost
            yield self._asked(study, range(wave.first, wave.first + len(wave.points)), wave)
            proposed = wave.first + len(wave.points)
        started = time.monotonic()
        elapsed_before = self.ledger.waves[-1].elapsed_s if self.ledger.waves else 0.0
        # Each wave ends with some idle workers; two rounds of trials a wave keep most of a cluster busy.
        wave_size = max(self.config.search.wave_size, 2 * concurrent_trials(self.config.resources, self.capacity))
        max_hours = self.config.search.max_hours
        while proposed < self.config.search.num_trials:
            elapsed_s = elapsed_before + time.monotonic() - started
            if max_hours is not None and elapsed_s >= 3600 * max_hours:
                self.progress.say(f"search.max_hours={max_hours:g} is used up after {proposed} proposals")
                return
            new = self._asked(study, range(proposed, min(proposed + wave_size, self.config.search.num_trials)))
            if not new:
                return
            points, queued = [proposal.point for proposal in new], sum(proposal.queued for proposal in new)
            self.ledger.add_wave(Wave(proposed, points, queued, round(elapsed_s, 3)))
            proposed += len(new)
            yield new

    def _asked(self, study: ProposalStudy, numbers: range, wave: Wave | None = None) -> list[Proposal]:
        """What the study proposes for these numbers: just what a recorded wave says, or what a trial's record says."""
        asked = []
        for at, number in enumerate(numbers):
            if wave is not None:
                asked.append(study.ask(again=wave.points[at], queued=at < wave.queued))
            else:
                tried = self.ledger.tried(trial_id(number))
                asked.append(study.ask(again=None if tried is None else tried.point))
        return [proposal for proposal in asked if proposal is not None]

    def _try(self, proposals: list[Proposal]) -> None:
        """Measure and train those proposals of a wave that have no record yet."""
        left = []
        for proposal in proposals:
            run_id = trial_id(proposal.number)
            key = self._key(proposal.model, proposal.train)
            if self.ledger.ended(run_id, key) is None:
                job = TrialJob(run_id, proposal.model, proposal.train, self.ledger.checkpoint_path(run_id))
                left.append((job, key, proposal.point))
        self._latencies.measure((job.model for job, _, _ in left), on_progress=self.progress.measuring)
        entries = {
            job.id: _Entry(
                job,
                key,
                job.id,
                point,
                _Latency(architecture_key(job.model), self._latencies.latency_ms(job.model)),
            )
            for job, key, point in left
        }
        unmeasured = {id_: why for id_, entry in entries.items() if (why := self._latencies.error(entry.job.model))}
        self._train(entries, resources=self.config.resources, add=self.ledger.add_trial, hopeless=unmeasured)

    def _train(
        self,
        entries: dict[str, _Entry],
        *,
        resources: ResourcesConfig,
        add: Callable[[TrialRecord], None],
        hopeless: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Train and record every entry; those in `hopeless` fail at once, for the reason there."""

        def keep(record: TrialRecord) -> None:
            add(record)
            self._write_tables_sometimes()

        recorder = _Recorder(entries, self.progress, self.metrics, workers=resources.workers_per_trial, add=keep)
        for run_id, reason in hopeless.items():
            recorder.failed(run_id, reason)
        if entries:  # those that failed have left it
            jobs = longest_first(entry.job for entry in entries.values())
            concurrency = concurrent_trials(resources, self.capacity)
            self._crews.train(jobs, recorder, resources=resources, concurrency=concurrency)

    def _key(self, model: ModelConfig, train: TrainConfig) -> str:
        return training_key(model, train, self._data)

    def _finalist_trials(self) -> list[TrialRecord]:
        chosen = list(select_finalists(self.ledger.front(), self.config.finalists.max_finalists))
        listed = self.space.checked_points(self.config.finalists.include, field="finalists.include")
        included = {self.space.key(point) for point in listed}
        known = {record.id for record in chosen}
        for record in self.ledger.trials:
            if self.space.key(record.point) in included and record.id not in known:
                if record.completed:
                    chosen.append(record)
                else:
                    self.progress.say(f"{record.id} is in finalists.include, but its trial failed: {record.error}")
        return chosen

    def _write_tables_sometimes(self, every_s: float = 5.0, share: float = 0.02) -> None:
        """Keep the tables of a live run fresh, in a small share of the time however many rows they have."""
        now = time.monotonic()
        if now >= self._tables_due:
            self.ledger.write_tables()
            took = time.monotonic() - now
            self._tables_due = now + max(every_s, took / share)


def longest_first(jobs: Iterable[TrialJob]) -> list[TrialJob]:
    """The jobs by their multiply-accumulates, most first, equal ones as they came: while the last ones end, other
    workers are idle, so they shall be short."""
    return sorted(jobs, key=lambda job: model_cost(job.model).macs * job.train.epochs, reverse=True)


def bad_metric(metrics: Mapping[str, Any]) -> str | None:
    """What is wrong with an epoch's or a test's metrics, in one line: missing, no number, or not finite."""
    expected = {one.name for one in fields(EpochMetrics)} if "epoch" in metrics else metrics.keys()
    for name in sorted(expected):
        value = metrics.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return f"{name} must be a finite number, but got {value!r}"
    return None


def select_finalists(front: list[TrialRecord], max_finalists: int) -> list[TrialRecord]:
    """At most `max_finalists` of the front, evenly spread along it, both ends included."""
    if len(front) <= max_finalists:
        return front
    if max_finalists <= 1:
        return front[:max_finalists]
    step = (len(front) - 1) / (max_finalists - 1)
    return [front[round(index * step)] for index in range(max_finalists)]
