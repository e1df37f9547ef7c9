"""How a command is set up: everything that it works within, in one order, and taken down again however it ends."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Literal

import ray
from rich.console import RenderableType
from rich.text import Text

from lsmha.data import Dataset
from lsmha.io.paths import RunPath
from lsmha.training.saved import load_logits
from orchestrator.cluster.capacity import Capacity, check_task
from orchestrator.cluster.connect import ClusterChoice, connect
from orchestrator.cluster.loss import exit_on_cluster_loss
from orchestrator.cluster.shared_storage import check_shared
from orchestrator.commands.preflight import check_analysis, load_data
from orchestrator.config.sweep import SweepConfig
from orchestrator.errors import Interrupted, UserError
from orchestrator.interrupts import interrupts_as_exceptions
from orchestrator.reporting.progress import Progress, show_progress
from orchestrator.run_folder.ledger import Ledger, is_run, load_run_config
from orchestrator.run_folder.ownership import check_free, give_up, owned
from orchestrator.storage_errors import storage_error_in, translate_storage_errors
from orchestrator.terminal import Terminal

NO_CLUSTER = Capacity(())


@dataclass(frozen=True)
class Ending:
    """How the work of a session ended."""

    how: Literal["complete", "interrupted", "crashed"]
    interrupted: Interrupted | None = None


@dataclass
class Session:
    """What the work of a command has."""

    capacity: Capacity
    """Of the cluster; of none, where the command needs none."""
    progress: Progress
    at_end: Callable[[Ending], None] = lambda _: None
    """Called once when the work has ended or is broken off, while the folder is still owned, unless it was the storage
    that failed. From another thread, if the process must end at once: when the cluster is lost, or the main thread does
    not answer a signal."""


@contextmanager
def session(
    folder: RunPath | None,
    terminal: Terminal,
    *,
    cluster: ClusterChoice | None,
    again: str,
    fits: Callable[[Capacity], None] = lambda _: None,
    view: Callable[[], RenderableType] = lambda: Text(""),
) -> Iterator[Session]:
    """Set a command up, and take it down.

    In this order: the storage's errors in one line; the cluster; whether it has room; the folder seen by all nodes and
    owned; the work's ending; signals; the loss of the cluster; progress.

    Args:
        folder: What the command writes into, which is made where it is not there; None where that is not to be owned.
        terminal: Where to print.
        cluster: Which to join or start; None for a command without.
        again: What goes on after an error, such as "the same command goes on": the end of the line that says so.
        fits: Refuses a cluster that is too small.
        view: What a live view of the progress shows below its bars.

    Raises:
        UserError: Something asked for cannot work; nothing has been written.
        StorageError: The folder is full, read-only or gone.
        Interrupted: SIGINT or SIGTERM.
    """
    kept = "" if folder is None else "nothing recorded is lost: "
    with ExitStack() as stack:
        stack.enter_context(translate_storage_errors(f"{kept}once mended, {again}"))
        capacity = NO_CLUSTER if cluster is None else stack.enter_context(connect(cluster))
        fits(capacity)
        if folder is not None:
            _own(folder, stack, on_cluster=cluster is not None)
        ending = stack.enter_context(_EndsOnce())
        stack.enter_context(interrupts_as_exceptions(when_stuck=ending.at_once))
        if cluster is not None:
            stack.enter_context(exit_on_cluster_loss(f"{kept}on a new one, {again}", when_lost=ending.at_once))
        progress = stack.enter_context(show_progress(terminal, view))
        ending.session = Session(capacity, progress)
        yield ending.session


class _EndsOnce:
    """Calls `Session.at_end` once, whichever thread comes first."""

    def __init__(self) -> None:
        self.session: Session | None = None
        self._lock = threading.Lock()
        self._ended = False

    def __enter__(self) -> _EndsOnce:
        return self

    def at_once(self, interrupted: Interrupted | None = None) -> None:
        """Call it before the process ends, from another thread."""
        self._end(Ending("crashed" if interrupted is None else "interrupted", interrupted))
        give_up()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is None:
            self._end(Ending("complete"))
        elif isinstance(error, Interrupted):
            self._end(Ending("interrupted", error))
        elif isinstance(error, Exception) and storage_error_in(error) is None:
            self._end(Ending("crashed"))

    def _end(self, ending: Ending) -> None:
        with self._lock:
            if not self._ended and self.session is not None:
                self._ended = True
                self.session.at_end(ending)


def _own(folder: RunPath, stack: ExitStack, *, on_cluster: bool) -> None:
    """Own a folder, new or not, until the stack ends.

    Raises:
        UserError: Another process owns it, a node does not see it, or, where it is new, it cannot be written.
        OSError: The storage is full, read-only or gone.
    """
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if on_cluster:
            check_shared(folder)
        stack.enter_context(owned(folder))
    except UserError:
        if is_new:
            with suppress(OSError):
                folder.rmdir()
        raise
    except OSError as error:
        if is_run(folder):
            raise
        raise UserError(f"--out: {folder} cannot be written: {error.strerror}") from None


@dataclass(frozen=True)
class FinishedRun:
    """A run with trained finalists, opened for more work on it."""

    ledger: Ledger
    config: SweepConfig
    """The run's own, with the overrides of today."""
    arrays: ray.ObjectRef
    """`Dataset.to_arrays()` in the object store."""
    progress: Progress


@contextmanager
def open_finished_run(
    folder: RunPath, overrides: list[str], terminal: Terminal, cluster: ClusterChoice
) -> Iterator[FinishedRun]:
    """Open a run with trained finalists and a cluster that can hold the analysis of one.

    Raises:
        UserError: It is no such run, its data cannot be loaded or have changed, or the cluster is too small.
    """
    for override in overrides:
        section = override.partition("=")[0].strip()
        if section != "data.path" and section.partition(".")[0] not in ("analysis", "pruning"):
            raise UserError(
                f"--set: only analysis, pruning and data.path of a run can be changed, but got {override!r}"
            )
    ledger = Ledger.load(folder)
    config = load_run_config(folder, overrides)
    if not any(record.completed for record in ledger.finalists):
        raise UserError(f"RUN: must have trained finalists, but {str(folder)!r} has none")
    check_free(folder)
    dataset = load_data(config.data, terminal)
    _check_same_test_set(ledger, dataset)
    check_analysis("analysis", config.analysis.readout, dataset)
    check_analysis("pruning", config.pruning.readout, dataset)
    with session(
        ledger.folder,
        terminal,
        cluster=cluster,
        again="the same command goes on",
        fits=lambda capacity: check_task(*config.analysis_resources(), capacity),
    ) as begun:
        yield FinishedRun(Ledger.load(folder), config, ray.put(dataset.to_arrays()), begun.progress)


def _check_same_test_set(ledger: Ledger, dataset: Dataset) -> None:
    for record in ledger.finalists:
        if record.completed:
            try:
                fingerprint = load_logits(ledger.finalist_folder(record.id), "test").fingerprint
            except (OSError, ValueError) as error:
                raise UserError(f"RUN: logits of finalist {record.id} cannot be read: {error}") from None
            if fingerprint != dataset.fingerprint:
                raise UserError(
                    f"data: must hold the run's own test set (fingerprint {fingerprint[:12]}), "
                    f"but got {dataset.fingerprint[:12]}"
                )
