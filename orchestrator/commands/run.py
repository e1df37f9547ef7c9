"""`lsmha-sweep run` and `resume`: check everything, go through the stages, and always leave a readable run folder."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack, suppress
from typing import Any

from rich.console import Console

from lsmha.config import RECIPE_VERSION
from lsmha.data import Dataset
from lsmha.io.paths import RunPath
from lsmha.provenance import git_revision, hardware, versions
from orchestrator.cluster.capacity import check_capacity
from orchestrator.cluster.connect import connect
from orchestrator.cluster.loss import ends_if_cluster_is_lost
from orchestrator.cluster.shared_storage import check_shared
from orchestrator.commands.preflight import check_analysis, check_batches, load_data
from orchestrator.config.resume import extended
from orchestrator.config.sweep import SweepConfig
from orchestrator.errors import UserError
from orchestrator.execution.gpu_sharing import on_one_gpu, with_gpu_share, without_gpus
from orchestrator.interrupts import Interrupted, interrupts_as_exceptions
from orchestrator.plain_text import print_plain
from orchestrator.reporting.artifacts import write_derived_files
from orchestrator.reporting.metrics import SweepMetrics
from orchestrator.reporting.progress import sweep_progress
from orchestrator.reporting.report import front_table, show_results
from orchestrator.run_folder.ledger import Ledger, is_run, remove_abandoned
from orchestrator.run_folder.location import check_new_folder
from orchestrator.run_folder.ownership import check_free, give_up, owned
from orchestrator.run_folder.records import Origin
from orchestrator.run_folder.status_file import mark_stage
from orchestrator.search.build import build_space, build_study, num_trials
from orchestrator.search.space import SearchSpace
from orchestrator.stages.sweep import Sweep
from orchestrator.storage_errors import storage_error_in, storage_errors_in_one_line


def run_sweep(
    config: SweepConfig, folder: RunPath, console: Console, *, address: str | None, dashboard: bool, quiet: bool
) -> int:
    """Run the sweep into a folder: a new one, or one of earlier sessions, whose run then goes on or grows.

    Returns the exit code: 0; 1 if every trial, every finalist, an analysis or the committees failed.

    Raises:
        UserError: Something asked for cannot work; nothing has been written.
        Interrupted: SIGINT or SIGTERM; what was done is in the folder, and the next session goes on from there.
        StorageError: The folder is full, read-only or gone; likewise.
    """
    build_space(config)
    with (
        storage_errors_in_one_line(f"nothing recorded is lost: once mended, `lsmha-sweep resume {folder}` goes on"),
        ExitStack() as session,
    ):
        if is_run(folder):
            check_free(folder)
            before = Ledger.load(folder)
            config = extended(before.config, config)
        else:
            before = None
            check_new_folder(folder)
        dataset = load_data(config.data, console, quiet=quiet)
        space = build_space(config, dataset)
        study = build_study(config, space)
        check_batches(config, dataset)
        if config.analysis.enabled:
            check_analysis("analysis", config.analysis.readout, dataset)
        origin = Origin(dataset.digest(), RECIPE_VERSION)
        if before is not None and before.origin is not None:
            before.origin.check(origin)
        capacity = session.enter_context(connect(address, dashboard=dashboard))
        settled = without_gpus(config, capacity)
        check_capacity(settled, capacity)
        ledger = _own(folder, config, session)
        ending = _Ending(config, space, dataset, ledger, console, quiet=quiet)
        try:
            with (
                interrupts_as_exceptions(when_stuck=ending.write_and_give_up),
                ends_if_cluster_is_lost(
                    f"nothing recorded is lost: on a new one, `lsmha-sweep resume {folder}` goes on",
                    when_lost=ending.write_and_give_up,
                ),
                sweep_progress(
                    console, lambda: front_table(ledger, title="Front, best first"), quiet=quiet
                ) as progress,
            ):
                mark_stage(folder, "search")
                ledger.begin_session(config, origin)
                settled = with_gpu_share(
                    settled, space, capacity, measure=on_one_gpu(capacity, dataset), say=progress.say
                )
                with SweepMetrics(ledger, progress.say) as metrics:
                    sweep = Sweep(settled, space, dataset, ledger, capacity, progress, metrics)
                    sweep.search(study)
                    mark_stage(folder, "latency of the front")
                    sweep.measure_front()
                    mark_stage(folder, "finalists")
                    sweep.train_finalists()
                    mark_stage(folder, "analysis")
                    sweep.analyze_finalists()
                    mark_stage(folder, "committees")
                    committed = sweep.form_committees()
            ending.write(complete=True)
        except Interrupted as interrupted:
            ending.write(interrupted)
            raise
        except Exception as error:
            if storage_error_in(error) is None:
                ending.write()
            raise
    wanted = config.finalists.max_finalists or config.finalists.include
    tested = any(record.completed for record in ledger.finalists)
    analyzed = all(one["status"] == "completed" for one in ledger.analyses.values())
    return 0 if ledger.front() and (tested or not wanted) and analyzed and committed else 1


def _own(folder: RunPath, config: SweepConfig, session: ExitStack) -> Ledger:
    """The ledger of a run, new or not, that is owned until the session ends."""
    known = is_run(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        check_shared(folder)
        session.enter_context(owned(folder))
    except UserError:
        if not known:
            with suppress(OSError):
                folder.rmdir()
        raise
    except OSError as error:
        if known:
            raise
        raise UserError(f"--out: {folder} cannot be written: {error.strerror}") from None
    return Ledger.load(folder) if known else Ledger.create(folder, config)


class _Ending:
    """What is left to do when a sweep ends, however it does: write what follows from the records, and say so."""

    def __init__(
        self,
        config: SweepConfig,
        space: SearchSpace,
        dataset: Dataset,
        ledger: Ledger,
        console: Console,
        *,
        quiet: bool,
    ) -> None:
        self._config, self._space, self._dataset, self._ledger = config, space, dataset, ledger
        self._console, self._quiet = console, quiet
        self._started = time.monotonic()
        self._revision = git_revision()  # now: the code on disk may change while this one runs
        self._lock = threading.Lock()
        self._written = False

    def write_and_give_up(self, interrupted: Interrupted | None = None) -> None:
        """Do it before the process ends at once, from another thread."""
        self.write(interrupted)
        give_up()

    def write(self, interrupted: Interrupted | None = None, *, complete: bool = False) -> None:
        """Do it once, whichever thread comes first."""
        with self._lock:
            if self._written:
                return
            self._written = True
            ledger = self._ledger
            session = {
                "complete": complete,
                "wall_seconds": time.monotonic() - self._started,
                "dataset": describe_dataset(self._dataset),
                "hardware": hardware(),
                "versions": versions(),
                "git_revision": self._revision,
            }
            write_derived_files(ledger, session)
            if complete:
                remove_abandoned(ledger.folder)
            mark_stage(ledger.folder, "complete" if complete else "interrupted" if interrupted else "crashed")
            if not self._quiet:
                show_results(ledger, self._console)
                print_plain(self._console, f"run folder: {ledger.folder}")
            failed = sum(not record.completed for record in ledger.trials + ledger.finalists)
            if failed:
                print_plain(self._console, f"{failed} training run(s) failed: see `lsmha-sweep status {ledger.folder}`")
            if not complete:
                total = num_trials(self._config, self._space)
                print_plain(
                    self._console,
                    f"incomplete, {len(ledger.trials)} of {total} trials and {len(ledger.finalists)} finalist runs "
                    f"recorded{f' at {interrupted}' if interrupted else ''}, "
                    f"resume with: lsmha-sweep resume {ledger.folder}",
                )


def describe_dataset(dataset: Dataset) -> dict[str, Any]:
    """What a summary says of the data."""
    return {
        "name": dataset.name,
        "train_images": len(dataset.train),
        "val_images": len(dataset.val),
        "test_images": len(dataset.test),
        "num_classes": dataset.num_classes,
        "img_size": dataset.img_size,
        "test_fingerprint": dataset.fingerprint,
    }
