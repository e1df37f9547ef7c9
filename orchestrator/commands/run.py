"""`lsmha-sweep run` and `resume`: check everything, go through the stages, and always leave a readable run folder."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from lsmha.io.paths import RunPath
from lsmha.provenance import git_revision, hardware, versions
from orchestrator.cluster.capacity import Capacity, check_capacity
from orchestrator.cluster.connect import ClusterChoice
from orchestrator.commands.preflight import PreparedSweep, prepare_sweep
from orchestrator.commands.session import Ending, session
from orchestrator.config.resume import merge_for_resume
from orchestrator.config.sweep import SweepConfig
from orchestrator.errors import ExitCode
from orchestrator.execution.gpu_sharing import on_one_gpu, resolve_gpu_share
from orchestrator.loggers.experiment_loggers import ExperimentLoggers, check_loggers
from orchestrator.reporting.artifacts import write_artifacts
from orchestrator.reporting.metrics import SweepMetrics
from orchestrator.reporting.summary import describe_dataset
from orchestrator.reporting.tables import front_table, show_results
from orchestrator.run_folder.ledger import Ledger, is_run, remove_abandoned
from orchestrator.run_folder.location import check_new_folder
from orchestrator.run_folder.ownership import check_free
from orchestrator.run_folder.status_file import mark_stage
from orchestrator.search.build import num_trials
from orchestrator.stages.sweep import STAGES, Sweep
from orchestrator.storage_errors import translate_storage_errors
from orchestrator.terminal import Terminal


def run_sweep(config: SweepConfig, folder: RunPath, terminal: Terminal, cluster: ClusterChoice) -> ExitCode:
    """Run the sweep into a folder: a new one, or one of earlier sessions, whose run then goes on or grows.

    Returns:
        `NO_RESULT` if every trial, every finalist, an analysis or the committees failed.

    Raises:
        UserError: Something asked for cannot work; nothing has been written.
        Interrupted: SIGINT or SIGTERM; what was done is in the folder, and the next session goes on from there.
        StorageError: The folder is full, read-only or gone; likewise.
    """
    again = f"`lsmha-sweep resume {folder}` goes on"
    config = config.with_absolute_data_path()  # the next session may begin in another folder
    with translate_storage_errors(f"nothing recorded is lost: once mended, {again}"):
        prepared = _prepare(config, folder, terminal)
    config = resolved = prepared.config

    def fits(capacity: Capacity) -> None:
        nonlocal resolved
        measure = on_one_gpu(capacity, prepared.dataset)
        resolved = resolve_gpu_share(config, prepared.space, capacity, measure=measure, say=terminal.say)
        check_capacity(resolved, capacity)

    with session(
        folder,
        terminal,
        cluster=cluster,
        again=again,
        fits=fits,
        view=lambda: front_table(ledger, title="Front, best first"),
    ) as begun:
        ledger = Ledger.load(folder) if is_run(folder) else Ledger.create(folder, config)
        begun.at_end = _SweepEnding(prepared, ledger, terminal)
        mark_stage(folder, STAGES[0][0])
        ledger.begin_session(config, prepared.fingerprint)
        with (
            ExperimentLoggers(ledger, prepared.space, begun.progress.say) as loggers,
            SweepMetrics(ledger, begun.progress.say) as metrics,
            Sweep(
                resolved,
                prepared.space,
                prepared.study,
                prepared.dataset,
                ledger,
                begun.capacity,
                begun.progress,
                metrics,
                loggers,
            ) as sweep,
        ):
            for name, do in STAGES:
                mark_stage(folder, name)
                do(sweep)
    wanted = config.finalists.max_finalists or config.finalists.include
    tested = any(record.completed for record in ledger.finalists)
    analyzed = all(analysis.completed for analysis in ledger.analyses.values())
    good = ledger.front() and (tested or not wanted) and analyzed and sweep.committees_formed
    return ExitCode.COMPLETE if good else ExitCode.NO_RESULT


def _prepare(config: SweepConfig, folder: RunPath, terminal: Terminal) -> PreparedSweep:
    """The sweep, with what an earlier session of it in the folder has settled."""
    check_loggers(config.loggers, folder)
    if not is_run(folder):
        check_new_folder(folder)
        return prepare_sweep(config, terminal)
    check_free(folder)
    before = Ledger.load(folder)
    prepared = prepare_sweep(merge_for_resume(before.config, config), terminal)
    if before.fingerprint is not None:
        before.fingerprint.check(prepared.fingerprint)
    return prepared


@dataclass
class _SweepEnding:
    """What is left to do when a sweep ends, however it does: write what follows from the records, and say so."""

    prepared: PreparedSweep
    ledger: Ledger
    terminal: Terminal
    started: float = field(default_factory=time.monotonic)
    revision: str | None = field(default_factory=git_revision)
    """Of the start: the code on disk may change while this one runs."""

    def __call__(self, ending: Ending) -> None:
        ledger, complete = self.ledger, ending.how == "complete"
        write_artifacts(
            ledger,
            {
                "complete": complete,
                "wall_seconds": time.monotonic() - self.started,
                "dataset": describe_dataset(self.prepared.dataset),
                "hardware": hardware(),
                "versions": versions(),
                "git_revision": self.revision,
            },
        )
        if complete:
            remove_abandoned(ledger.folder)
        mark_stage(ledger.folder, ending.how)
        show_results(ledger, self.terminal)
        self.terminal.say(f"run folder: {ledger.folder}")
        self._say_what_failed()
        if not complete:
            at = "" if ending.interrupted is None else f" at {ending.interrupted}"
            self.terminal.insist(
                f"incomplete, {self._recorded_trials()} and {len(ledger.finalists)} finalist runs recorded{at}, "
                f"resume with: lsmha-sweep resume {ledger.folder}"
            )

    def _recorded_trials(self) -> str:
        config, ledger = self.prepared.config, self.ledger
        if config.search.lets_trials_pause:
            return f"{len(ledger.trials)} trials that ended, {len(ledger.pauses)} that pause"
        return f"{len(ledger.trials)} of {num_trials(config, self.prepared.space)} trials"

    def _say_what_failed(self) -> None:
        ledger = self.ledger
        failed = [record for record in [*ledger.trials, *ledger.finalists] if record.failed]
        if failed:
            self.terminal.insist(f"{len(failed)} training run(s) failed: see `lsmha-sweep status {ledger.folder}`")
        unexpected = [record.id for record in failed if record.failure == "unexpected"]
        if unexpected:
            self.terminal.insist(
                f"of these, {', '.join(unexpected)} failed by an error that lsmha-sweep did not foresee: "
                f"see {ledger.folder / 'tracebacks'}"
            )
