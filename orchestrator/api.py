"""Sweeps from a script or a notebook: run one without a console, and have what a run folder holds as data frames."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from lsmha.io.paths import RunPath
from lsmha.io.tables import as_table
from orchestrator.config.sweep import SweepConfig
from orchestrator.config.validation import validated
from orchestrator.config.yaml import load_sweep_config
from orchestrator.errors import Interrupted, UserError
from orchestrator.run_folder.ledger import Ledger
from orchestrator.run_folder.location import location
from orchestrator.run_folder.status_file import describe_stage
from orchestrator.run_folder.tables import table_rows
from orchestrator.terminal import QUIET, Terminal

if TYPE_CHECKING:
    from lsmha.models import CCT
    from lsmha.training.saved import StoredLogits


@dataclass(frozen=True, eq=False, repr=False)
class Run:
    """What a run has found out, as it was when it was opened.

    The data frames are those of the Parquet files in the folder, whose columns `docs/run-folder.md` describes; one that
    has no rows has no columns.
    """

    folder: RunPath
    config: SweepConfig
    """Settings of the latest session."""
    stage: str
    """As `lsmha-sweep status` has it: `complete`, or how far the run is or was."""
    trials: pd.DataFrame
    """The search's training runs, failed ones included."""
    curves: pd.DataFrame
    """Each epoch of each training run."""
    front: pd.DataFrame
    """The trials on the Pareto front, best in the first objective first."""
    latency: pd.DataFrame
    """By architecture and batch size."""
    finalists: pd.DataFrame
    """The front's configurations, trained again with each seed and tested once."""
    analyses: pd.DataFrame
    """What heads, nodes and filters of the finalists recognize, by block."""
    committees: pd.DataFrame
    prunings: pd.DataFrame

    def network(self, finalist: str) -> CCT:
        """A finalist's trained network, on the CPU, in eval mode; it takes normalized images (B, C, S, S).

        Raises:
            UserError: There is none of that id, such as `t0007-s1`.
            DamagedFileError: Its weights are damaged.
        """
        from lsmha.training.saved import load_model  # here, because tables must not wait for torch

        return load_model(self._folder_of(finalist)).eval()

    def logits(self, finalist: str, split: Literal["val", "test"] = "test") -> StoredLogits:
        """A finalist's logits (n, K) and labels (n,) of the images of a split.

        Raises:
            UserError: There is none of that id.
            DamagedFileError: They are damaged.
        """
        from lsmha.training.saved import load_logits  # here, because tables must not wait for torch

        return load_logits(self._folder_of(finalist), split)

    def _folder_of(self, finalist: str) -> RunPath:
        completed = [] if self.finalists.empty else list(self.finalists.query("status == 'completed'")["id"])
        if finalist not in completed:
            raise UserError(f"finalist: must be one of {', '.join(completed) or 'none so far'}, but got {finalist!r}")
        return self.folder / "finalists" / finalist

    def __repr__(self) -> str:
        counts = f"{len(self.trials)} trials, {len(self.front)} on the front, {len(self.finalists)} finalist runs"
        return f"Run({str(self.folder)!r}: {self.stage}; {counts})"


def load_run(path: str | PathLike[str]) -> Run:
    """Open a run folder, or its URL (s3://, gs://): of a complete run, or of one that is under way.

    Raises:
        UserError: It is not the folder of a run, or a record in it is damaged.
    """
    return _opened(location(str(path), field="path"))


def _opened(folder: RunPath) -> Run:
    ledger = Ledger.load(folder)
    rows = table_rows(ledger)

    def frame(table: str) -> pd.DataFrame:
        return as_table(rows.get(table, [])).to_pandas()

    return Run(
        folder=ledger.folder,
        config=ledger.config,
        stage=describe_stage(ledger.folder),
        trials=frame("trials"),
        curves=frame("curves"),
        front=frame("front"),
        latency=frame("latency"),
        finalists=frame("finalists"),
        analyses=frame("analysis"),
        committees=frame("committees"),
        prunings=frame("pruning"),
    )


def run_sweep(
    config: SweepConfig | Mapping[str, Any] | str | PathLike[str],
    *,
    out: str | PathLike[str],
    address: str | None = None,
    dashboard: bool = False,
    progress: bool = False,
) -> Run:
    """Run a sweep, as `lsmha-sweep run` does, and open its folder.

    Ctrl-C loses nothing: the same call goes on with the run, and so does `lsmha-sweep resume`. Trials may have failed,
    even all of them: `Run.trials` says why. If the cluster is lost, the process ends, since Ray leaves nothing to wait
    for.

    Args:
        config: The settings, as a mapping with the keys of a sweep's YAML, or the path of one.
        out: Run folder, or its URL (s3://, gs://): a new one, or that of an earlier session of the same sweep.
        address: Ray cluster to join. Default: `RAY_ADDRESS`, else one started on this machine, else a new local one.
        dashboard: Start Ray's dashboard with a local cluster.
        progress: Print what the command prints; otherwise nothing is printed.

    Raises:
        UserError: Something asked for cannot work; nothing has been written.
        StorageError: The folder is full, read-only or gone; what was recorded before is kept.
        KeyboardInterrupt: The user, or SIGTERM, ended it; what was done is in the folder.
    """
    # Here, because whoever only reads a run must not wait for torch and Ray.
    from orchestrator.cluster.connect import ClusterChoice
    from orchestrator.commands import run as command

    folder = location(str(out), field="out").absolute()
    terminal = Terminal() if progress else QUIET
    try:
        command.run_sweep(_settings(config), folder, terminal, ClusterChoice(address, dashboard))
    except Interrupted as interrupted:
        raise KeyboardInterrupt(str(interrupted)) from None
    return _opened(folder)


def _settings(config: SweepConfig | Mapping[str, Any] | str | PathLike[str]) -> SweepConfig:
    if isinstance(config, SweepConfig):
        return config
    if isinstance(config, Mapping):
        return validated(SweepConfig, dict(config))
    return load_sweep_config(location(str(config), field="config"))
