"""The stages of a sweep: measure and search the space, train, test and analyze finalists, form their committees."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType, TracebackType

import ray
from typing_extensions import Self

from lsmha.config import ModelConfig, TrainConfig
from lsmha.data import Dataset
from lsmha.models import model_cost
from orchestrator.cluster.capacity import Capacity, concurrent_trials
from orchestrator.config.sweep import ResourcesConfig, SweepConfig
from orchestrator.execution.engine import TuneEngine
from orchestrator.execution.latency import LatencyCache
from orchestrator.execution.training_job import TrainingJob
from orchestrator.failures import Failure
from orchestrator.loggers.experiment_loggers import ExperimentLoggers
from orchestrator.reporting.artifacts import write_tracebacks
from orchestrator.reporting.metrics import SweepMetrics
from orchestrator.reporting.progress import Progress
from orchestrator.run_folder.content_hash import architecture_hash, training_hash
from orchestrator.run_folder.ledger import Ledger
from orchestrator.run_folder.records import SuggestionBatch, TrialRecord, finalist_id, trial_id
from orchestrator.run_folder.tables import write_tables
from orchestrator.search.build import num_trials
from orchestrator.search.early_stopping import EarlyStopping
from orchestrator.search.space import SearchSpace
from orchestrator.search.study import Proposal, ProposalStudy
from orchestrator.stages.analysis import analyze_finalists
from orchestrator.stages.committees import form_committees_of
from orchestrator.stages.finalists import choose_finalists
from orchestrator.stages.recorder import Entry, KnownLatency, Recorder
from orchestrator.stages.segments import SegmentSearch
from orchestrator.stages.space_latency import measured_first


class Sweep:
    """One run of the stages over a ledger, on a cluster that Ray is connected to; a context that ends what it started.

    Each stage does what the ledger, in which a session has begun, does not have yet. So a sweep goes on after a break
    by going through them again.
    """

    def __init__(
        self,
        config: SweepConfig,
        space: SearchSpace,
        study: ProposalStudy,
        dataset: Dataset,
        ledger: Ledger,
        capacity: Capacity,
        progress: Progress,
        metrics: SweepMetrics,
        loggers: ExperimentLoggers,
    ) -> None:
        self.config, self.space, self.study, self.ledger = config, space, study, ledger
        self.capacity, self.progress, self.metrics, self.loggers = capacity, progress, metrics, loggers
        assert ledger.fingerprint is not None
        self._data = ledger.fingerprint.data
        self._arrays = ray.put(dataset.to_arrays())
        self._engine = TuneEngine(self._arrays, storage=ledger.folder / "ray")
        self._early_stopping = EarlyStopping.of(config)
        self._tables_due = time.monotonic()
        self._latencies = LatencyCache(
            config.latency,
            capacity,
            use_gpu=config.latency_on_gpu(),
            known=ledger.latencies,
            on_measured=ledger.add,
        )
        self.committees_formed = True
        """False if the committees could not be formed."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._engine.close(abandon=kind is not None)

    def measure_space(self) -> None:
        """Measure the latency of the whole space, where it is small enough and there is still a trial to train, or
        where the strategy decides by it."""
        if not self.config.search.lets_trials_pause and len(self.ledger.trials) >= num_trials(self.config, self.space):
            return
        models = [model for model in measured_first(self.config, self.space) if not self._latencies.knows(model)]
        if models:
            self.progress.stage("latency", len(models), unit="architectures")
            self._latencies.measure(models, on_progress=lambda done, _: self.progress.reached(done))
            write_tables(self.ledger)

    def search(self) -> None:
        """Train what the sampler proposes, or what the strategy decides on."""
        if self.config.search.lets_trials_pause:
            self._search_by_segments()
        else:
            self._search_by_proposals()

    def _search_by_proposals(self) -> None:
        """Train the study's proposals, batch after batch, each after its latency was measured, if it was not before.

        What was proposed in earlier sessions is proposed again, and the results are told again in the same order: the
        study then is where it was.
        """
        self.progress.stage("search", num_trials(self.config, self.space))
        for record in self.ledger.trials:
            self.progress.was_ended(record)
            if self._early_stopping is not None:
                self._early_stopping.remember(record.id, record.curve)
        for proposals in self._batches():
            self._try(proposals)
            for proposal in proposals:
                ended = self.ledger.ended(trial_id(proposal.number), self._key(proposal.model, proposal.train))
                assert ended is not None
                if ended.stopped:
                    self.study.tell_stopped(proposal.number, ended.curve)
                else:
                    self.study.tell(proposal.number, vars(ended) if ended.completed else None)

    def _search_by_segments(self) -> None:
        """Train segments as they are decided on; those of earlier sessions that have no result first."""
        workers = concurrent_trials(self.config.resources, self.capacity)
        segments = SegmentSearch(self.config, self.space, self.ledger, self._latencies, workers=workers)
        for reason, count in Counter(segments.unmeasured).items():
            self.progress.say(f"latency: {count} configuration(s) could not be measured and are left out: {reason}")
        self.progress.stage("search", segments.budget, unit="epochs")
        for record in self.ledger.begun:
            self.progress.was_ended(record)

        def decide() -> list[Entry]:
            entries = segments.decide()
            self.progress.expects(segments.expected_gain)
            return entries

        left = {entry.job.id: entry for entry in [*segments.under_way(), *decide()]}
        self._train(left, resources=self.config.resources, on_record=segments.tell, more=decide)
        self.progress.say(f"search: {segments.outcome}")

    def measure_front(self) -> None:
        """Measure the latency of all on the front beside one another, in rounds, until no other trial comes to it."""
        if self.config.latency.rounds == 1 or not self.config.seeks_low_latency():
            return
        self._engine.release()
        errors: dict[str, str] = {}
        while new := {
            record.architecture: self.space.build(record.point)[0]
            for record in self.ledger.front()
            if record.latency_p25_ms is None and record.architecture not in errors
        }:
            found = self._latencies.measure_in_rounds(
                new.values(), on_measured=self.ledger.add, on_progress=self.progress.making_rounds
            )
            errors |= found
            for reason in sorted(set(found.values())):
                self.progress.say(f"the front's latency stays as the search measured it: {reason}")

    def train_finalists(self) -> None:
        """Train the front's configurations, and those to include, at the full budget with every seed, and test once."""
        entries: dict[str, Entry] = {}
        ended = []
        config = self.config.finalists
        for record in choose_finalists(self.ledger, self.space, config, say=self.progress.say):
            model, train = self.space.build(record.point)
            for seed in config.seeds:
                run_id = finalist_id(record.id, seed)
                recipe = self.config.finalist_recipe(train, seed)
                key = self._key(model, recipe)
                if (before := self.ledger.ended(run_id, key)) is not None:
                    ended.append(before)
                    continue
                checkpoint, folder = self.ledger.checkpoint_path(run_id), self.ledger.finalist_folder(run_id)
                job = TrainingJob(run_id, model, recipe, checkpoint, export=folder)
                entries[run_id] = Entry(job, key, record.id, record.point, KnownLatency.of(record))
        self.progress.stage("finalists", len(entries) + len(ended))
        for record in ended:
            self.progress.was_ended(record)
        self._train(entries, resources=self.config.finalist_resources())
        self._engine.close()

    def analyze_finalists(self) -> None:
        """Read out of every trained finalist what its heads, nodes and filters recognize."""
        if self.config.analysis.enabled:
            analyze_finalists(self.config, self.ledger, self.progress, arrays=self._arrays, repeat=False)

    def form_committees(self) -> None:
        """Let the finalists decide together, from their stored logits."""
        if self.config.committees.enabled:
            self.committees_formed = form_committees_of(self.ledger, self.progress, arrays=self._arrays)

    def _batches(self) -> Iterator[list[Proposal]]:
        """Proposals of each batch: those of earlier sessions first, then new ones, recorded before they are tried."""
        proposed = 0
        for batch in self.ledger.batches:
            # The record of a batch can be damaged and set aside: its trials say what they were proposed as.
            if lost := self._replayed(range(proposed, batch.first)):
                yield lost
            yield self._replayed(range(batch.first, batch.first + len(batch.points)), batch)
            proposed = batch.first + len(batch.points)
        started = time.monotonic()
        elapsed_before = self.ledger.batches[-1].elapsed_s if self.ledger.batches else 0.0
        # Each batch ends with some idle workers; two rounds of trials a batch keep most of a cluster busy.
        size = max(self.config.search.suggestion_batch, 2 * concurrent_trials(self.config.resources, self.capacity))
        max_hours = self.config.search.max_hours
        while proposed < self.config.search.num_trials:
            elapsed_s = elapsed_before + time.monotonic() - started
            if max_hours is not None and elapsed_s >= 3600 * max_hours:
                self.progress.say(f"search.max_hours={max_hours:g} is used up after {proposed} proposals")
                return
            new = self._replayed(range(proposed, min(proposed + size, self.config.search.num_trials)))
            if not new:
                return
            points, enqueued = [proposal.point for proposal in new], sum(proposal.enqueued for proposal in new)
            self.ledger.add(SuggestionBatch(proposed, points, enqueued, round(elapsed_s, 3)))
            proposed += len(new)
            yield new

    def _replayed(self, numbers: range, batch: SuggestionBatch | None = None) -> list[Proposal]:
        """What the study proposes for these numbers: just what a recorded batch says, or what a trial's record says."""
        proposals = []
        for place, number in enumerate(numbers):
            if batch is not None:
                proposals.append(self.study.ask(replay=batch.points[place], enqueued=place < batch.enqueued))
            else:
                tried = self.ledger.tried(trial_id(number))
                proposals.append(self.study.ask(replay=None if tried is None else tried.point))
        return [proposal for proposal in proposals if proposal is not None]

    def _try(self, proposals: list[Proposal]) -> None:
        """Measure and train those proposals of a batch that have no record yet."""
        left = []
        for proposal in proposals:
            run_id = trial_id(proposal.number)
            key = self._key(proposal.model, proposal.train)
            if self.ledger.ended(run_id, key) is None:
                job = TrainingJob(run_id, proposal.model, proposal.train, self.ledger.checkpoint_path(run_id))
                left.append((job, key, proposal.point))
        if not all(self._latencies.knows(job.model) for job, _, _ in left):
            self._engine.release()  # a measurement claims its device, and so do actors that wait for the next trial
            self._latencies.measure((job.model for job, _, _ in left), on_progress=self.progress.measuring)
        entries, unmeasured = {}, {}
        for job, key, point in left:
            latency = KnownLatency(architecture_hash(job.model), self._latencies.latency_ms(job.model))
            entries[job.id] = Entry(job, key, job.id, point, latency)
            if (reason := self._latencies.error(job.model)) is not None:
                unmeasured[job.id] = Failure(reason, "latency")
        self._train(
            entries, resources=self.config.resources, infeasible=unmeasured, early_stopping=self._early_stopping
        )

    def _train(
        self,
        entries: dict[str, Entry],
        *,
        resources: ResourcesConfig,
        infeasible: Mapping[str, Failure] = MappingProxyType({}),
        early_stopping: EarlyStopping | None = None,
        on_record: Callable[[TrialRecord], None] = lambda _: None,
        more: Callable[[], Sequence[Entry]] = tuple,
    ) -> None:
        """Train and record every entry, and those that `more` gives whenever one has left; those in `infeasible` fail
        at once, for the reason there."""

        def keep(record: TrialRecord) -> None:
            self.ledger.add(record)
            on_record(record)
            if early_stopping is not None:
                early_stopping.remember(record.id, record.curve)
            if record.traceback is not None:
                write_tracebacks(self.ledger)
            self._write_tables_sometimes()

        def more_jobs() -> list[TrainingJob]:
            added = {entry.job.id: entry for entry in more()}
            entries.update(added)
            return [entry.job for entry in added.values()]

        workers = resources.workers_per_trial
        recorder = Recorder(entries, self.progress, self.metrics, self.loggers, workers=workers, add=keep)
        for run_id, failure in infeasible.items():
            recorder.fail(run_id, failure)
        if entries:  # those that failed have left it
            jobs = longest_first(entry.job for entry in entries.values())
            concurrency = concurrent_trials(resources, self.capacity)
            self._engine.train(
                jobs,
                recorder,
                resources=resources,
                concurrency=concurrency,
                early_stopping=early_stopping,
                more=more_jobs,
            )

    def _key(self, model: ModelConfig, train: TrainConfig) -> str:
        return training_hash(model, train, self._data)

    def _write_tables_sometimes(self, every_s: float = 5.0, share: float = 0.02) -> None:
        """Keep the tables of a live run fresh, in a small share of the time however many rows they have."""
        now = time.monotonic()
        if now >= self._tables_due:
            write_tables(self.ledger)
            took = time.monotonic() - now
            self._tables_due = now + max(every_s, took / share)


STAGES: tuple[tuple[str, Callable[[Sweep], None]], ...] = (
    ("latency of the space", Sweep.measure_space),
    ("search", Sweep.search),
    ("latency of the front", Sweep.measure_front),
    ("finalists", Sweep.train_finalists),
    ("analysis", Sweep.analyze_finalists),
    ("committees", Sweep.form_committees),
)
"""In their order, with the names that `status` shows."""


def longest_first(jobs: Iterable[TrainingJob]) -> list[TrainingJob]:
    """The jobs by their multiply-accumulates, most first, equal ones as they came: while the last ones end, other
    workers are idle, so they shall be short."""
    return sorted(jobs, key=lambda job: model_cost(job.model).macs * job.train.epochs, reverse=True)
