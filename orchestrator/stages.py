"""The stages of a sweep: search the space, train and test the finalists, analyse them, form their committees."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import ray

from lsmha.data import Dataset
from lsmha.models import model_cost
from lsmha.training import EpochMetrics
from lsmha.training.logits import logits_path
from orchestrator.analysis_stage import analyse_finalists
from orchestrator.cluster import Capacity, concurrent_trials
from orchestrator.committee_stage import form_committees_of
from orchestrator.latency_cache import LatencyCache
from orchestrator.ledger import Ledger
from orchestrator.progress import Progress
from orchestrator.records import TrialRecord, finalist_id, trial_id
from orchestrator.search_space import Point, SearchSpace
from orchestrator.searcher import JobSearcher, StudySearcher
from orchestrator.study import Proposal, ProposalStudy
from orchestrator.sweep_config import DATA_DEFINED, ResourcesConfig, SweepConfig
from orchestrator.trial import TrialJob
from orchestrator.tune_run import run_jobs


def build_space(config: SweepConfig, dataset: Dataset | None = None) -> SearchSpace:
    """The search space over the configured base, with the architecture's ends fitted to the data set if given.

    Raises:
        UserError: It has no valid point, or a choice that is part of none.
    """
    fitted = {name: getattr(dataset, name) for name in DATA_DEFINED} if dataset else {}
    space = SearchSpace(config.space, config.model.model_copy(update=fitted), config.train)
    space.check_choices()
    return space


def build_study(config: SweepConfig, space: SearchSpace) -> ProposalStudy:
    """The study that proposes the sweep's trials."""
    included = space.checked_points(config.finalists.include, field="finalists.include")
    return ProposalStudy(space, config.search, config.objectives, seed=config.seed, first=included)


def num_trials(config: SweepConfig, space: SearchSpace) -> int:
    """Trials that the search will make: its budget, or the whole space where that is smaller."""
    return min(config.search.num_trials, len(space.points)) if space.is_finite else config.search.num_trials


@dataclass(frozen=True)
class _Entry:
    """A job under way, with what the record needs besides its result."""

    job: TrialJob
    trial: str
    point: Point
    latency_ms: float | None
    curve: dict[int, dict[str, float]] = field(default_factory=dict)
    """Metrics of the epochs so far, by epoch: a run that was started again may repeat one."""


class _Recorder:
    """Turns the events of jobs into records and progress."""

    def __init__(
        self, entries: dict[str, _Entry], progress: Progress, *, workers: int, add: Callable[[TrialRecord], None]
    ) -> None:
        self._entries, self._progress, self._workers, self._add = entries, progress, workers, add

    def started(self, job_id: str) -> None:
        entry = self._entries[job_id]
        self._progress.started(job_id, entry.point, entry.job.train.epochs)

    def epoch_ended(self, job_id: str, metrics: dict[str, Any]) -> None:
        epoch = {one.name: metrics[one.name] for one in fields(EpochMetrics)}
        self._entries[job_id].curve[metrics["epoch"]] = epoch
        self._progress.epoch_ended(job_id, metrics)

    def completed(self, job_id: str, result: dict[str, Any]) -> None:
        folder = self._entries[job_id].job.export
        if folder is not None and not logits_path(folder, "test").is_file():
            self.failed(
                job_id, f"its files are not in {folder}: the run folder must be on storage that all nodes share"
            )
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
            train_device=result["train_device"],
            curve=result["curve"],
        )

    def failed(self, job_id: str, reason: str) -> None:
        curve = list(self._entries[job_id].curve.values())
        seconds = sum(epoch["seconds"] for epoch in curve)
        self._end(job_id, status="failed", epochs=len(curve), seconds=seconds, curve=curve, error=reason)

    def _end(self, job_id: str, **outcome: Any) -> None:
        entry = self._entries.pop(job_id)
        cost = model_cost(entry.job.model)
        record = TrialRecord(
            id=job_id,
            trial=entry.trial,
            point=entry.point,
            seed=entry.job.train.seed,
            params=cost.params,
            macs=cost.macs,
            latency_ms=entry.latency_ms,
            workers=self._workers,
            **outcome,
        )
        self._add(record)
        self._progress.ended(record)


class Sweep:
    """One run of the stages over a ledger, on a cluster that Ray is connected to."""

    def __init__(
        self,
        config: SweepConfig,
        space: SearchSpace,
        dataset: Dataset,
        ledger: Ledger,
        capacity: Capacity,
        progress: Progress,
    ) -> None:
        self.config, self.space, self.ledger = config, space, ledger
        self.capacity, self.progress = capacity, progress
        self._arrays = ray.put(dataset.to_arrays())
        self._tables_written = time.monotonic()

    def search(self, study: ProposalStudy) -> None:
        """Train the study's proposals, each after its latency was measured."""
        latencies = LatencyCache(
            self.config.latency,
            self.capacity,
            use_gpu=self.config.resources.gpus_per_trial > 0,
            on_measured=self.ledger.add_latency,
        )
        entries: dict[str, _Entry] = {}
        numbers: dict[str, int] = {}

        def make_job(proposal: Proposal) -> TrialJob:
            run_id = trial_id(proposal.number)
            job = TrialJob(run_id, proposal.model, proposal.train, self.ledger.checkpoint_path(run_id))
            entries[run_id] = _Entry(job, run_id, proposal.point, latencies.latency_ms(proposal.model))
            numbers[run_id] = proposal.number
            return job

        def add(record: TrialRecord) -> None:
            study.tell(numbers[record.id], asdict(record) if record.completed else None)
            self.ledger.add_trial(record)
            self._write_tables_sometimes()

        total = num_trials(self.config, self.space)
        resources = self.config.resources
        recorder = _Recorder(entries, self.progress, workers=resources.workers_per_trial, add=add)

        def fail(proposal: Proposal, reason: str) -> None:
            make_job(proposal)
            recorder.failed(trial_id(proposal.number), reason)

        self.progress.stage("search", total)
        # Each wave ends with some idle workers; two rounds of trials a wave keep most of a cluster busy.
        wave_size = max(self.config.search.wave_size, 2 * concurrent_trials(resources, self.capacity))
        searcher = StudySearcher(
            study,
            latencies,
            num_trials=total,
            wave_size=wave_size,
            make_job=make_job,
            on_unmeasurable=fail,
        )
        wave = 0
        while architectures := searcher.next_wave():
            latencies.measure(architectures, on_progress=self.progress.measuring)
            self._run(f"search-{wave}", searcher, recorder, num_jobs=searcher.left, resources=resources)
            wave += 1

    def train_finalists(self) -> None:
        """Train the front's configurations, and those to include, at the full budget with every seed, and test once."""
        entries: dict[str, _Entry] = {}
        jobs = []
        for record in self._finalist_trials():
            model, train = self.space.build(record.point)
            for seed in self.config.finalists.seeds:
                run_id = finalist_id(record.id, seed)
                recipe = train.model_copy(update={"seed": seed, "epochs": self.config.finalist_epochs()})
                job = TrialJob(
                    run_id,
                    model,
                    recipe,
                    self.ledger.checkpoint_path(run_id),
                    export=self.ledger.finalist_folder(run_id),
                )
                entries[run_id] = _Entry(job, record.id, record.point, record.latency_ms)
                jobs.append(job)
        self.progress.stage("finalists", len(jobs))
        if jobs:
            resources = self.config.finalist_resources()
            recorder = _Recorder(
                entries, self.progress, workers=resources.workers_per_trial, add=self.ledger.add_finalist
            )
            self._run("finalists", JobSearcher(jobs), recorder, num_jobs=len(jobs), resources=resources)

    def analyse_finalists(self) -> None:
        """Read out of every trained finalist what its heads, nodes and filters recognise."""
        if self.config.analysis.enabled:
            analyse_finalists(self.config, self.ledger, self.progress, arrays=self._arrays)

    def form_committees(self) -> bool:
        """Let the finalists decide together, from their stored logits; returns whether that went well."""
        if not self.config.committees.enabled:
            return True
        return form_committees_of(self.ledger, self.progress, arrays=self._arrays)

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

    def _run(
        self, name: str, searcher: JobSearcher, recorder: _Recorder, *, num_jobs: int, resources: ResourcesConfig
    ) -> None:
        run_jobs(
            searcher,
            recorder,
            name=name,
            num_jobs=num_jobs,
            resources=resources,
            concurrency=concurrent_trials(resources, self.capacity),
            arrays=self._arrays,
            storage=self.ledger.folder / "ray",
        )
        self.ledger.write_tables()

    def _write_tables_sometimes(self, every_s: float = 5.0) -> None:
        """Keep the tables of a live run fresh without rewriting them for each of thousands of short trials."""
        if time.monotonic() - self._tables_written > every_s:
            self.ledger.write_tables()
            self._tables_written = time.monotonic()


def select_finalists(front: list[TrialRecord], max_finalists: int) -> list[TrialRecord]:
    """At most `max_finalists` of the front, evenly spread along it, both ends included."""
    if len(front) <= max_finalists:
        return front
    if max_finalists <= 1:
        return front[:max_finalists]
    step = (len(front) - 1) / (max_finalists - 1)
    return [front[round(index * step)] for index in range(max_finalists)]
