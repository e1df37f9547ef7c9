"""The analysis of trained networks: jobs for Ray tasks, and what becomes of their results."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch

from lsmha.analysis import analyze
from lsmha.analysis.plots import save_plots
from lsmha.analysis.saved import block_rows, save_analysis
from lsmha.config import AnalysisConfig
from lsmha.data import Dataset
from lsmha.training.saved import load_checkpoint
from orchestrator.analysis_report import main_rows
from orchestrator.ledger import Ledger
from orchestrator.progress import Progress
from orchestrator.ray_tasks import OnProgress, run_tasks
from orchestrator.sweep_config import SweepConfig


@dataclass(frozen=True)
class AnalysisJob:
    """One network to analyse."""

    id: str
    checkpoint: Path
    """As `lsmha.training.saved.load_checkpoint` takes it."""
    out: Path
    """Folder for the results."""
    config: AnalysisConfig
    num_heads: int | None = None
    """Of published weights, which do not tell."""


def analyse_checkpoint(
    job: AnalysisJob, dataset: Dataset, device: torch.device, on_progress: OnProgress
) -> list[dict[str, Any]]:
    """Analyse one network, write tables and plots to the job's folder, and return the rows of its blocks."""
    model = load_checkpoint(job.checkpoint, img_size=dataset.img_size, num_heads=job.num_heads)
    analysis = analyze(model, dataset, job.config, device=device, on_progress=on_progress)
    save_analysis(analysis, job.out)
    save_plots(analysis, job.out, title=job.id)
    return block_rows(analysis)


def analyse_finalists(config: SweepConfig, ledger: Ledger, progress: Progress, *, arrays: ray.ObjectRef) -> None:
    """Analyse a run's trained finalists as `config` says and record what comes out."""
    settings = config.analysis.plain()
    jobs = [
        AnalysisJob(record.id, ledger.finalist_folder(record.id), ledger.analysis_folder(record.id), settings)
        for record in ledger.finalists
        if record.completed
    ]
    if not jobs:
        return
    progress.stage("analysis", len(jobs), unit="networks")
    cpus, gpus = config.analysis_resources()
    try:
        run_tasks(analyse_checkpoint, jobs, _Recorder(ledger, progress), cpus=cpus, gpus=gpus, arrays=arrays)
    finally:
        ledger.write_tables()


class _Recorder:
    """Turns the events of analyses into records and progress."""

    def __init__(self, ledger: Ledger, progress: Progress) -> None:
        self._ledger, self._progress = ledger, progress

    def progressed(self, job_id: str, activity: str, done: int, total: int) -> None:
        self._progress.part(job_id, activity, done, total)

    def completed(self, job_id: str, blocks: list[dict[str, Any]]) -> None:
        self._ledger.add_analysis(job_id, blocks)
        last = main_rows(blocks)[-1]
        snr = "?" if last["field_snr"] is None else f"{last['field_snr']:.2f}"
        self._progress.finished(
            job_id,
            f"{last['unit']}s of block {last['block']}: readout_accuracy={last['readout_accuracy']:.4f} snr={snr}",
        )

    def failed(self, job_id: str, reason: str) -> None:
        self._ledger.add_analysis(job_id, [], error=reason)
        self._progress.finished(job_id, reason, failed=True)
