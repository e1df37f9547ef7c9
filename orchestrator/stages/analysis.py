"""The analysis of trained networks: jobs for Ray tasks, and what becomes of their results."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ray
import torch

from lsmha.analysis import analyze
from lsmha.analysis.plots import save_plots
from lsmha.analysis.saved import block_rows, save_analysis
from lsmha.config import AnalysisConfig
from lsmha.data import Dataset
from lsmha.io.paths import RunPath
from lsmha.progress import OnProgress
from lsmha.training.saved import load_network
from orchestrator.config.sweep import SweepConfig
from orchestrator.execution.tasks import run_tasks
from orchestrator.reporting.progress import Progress
from orchestrator.reporting.tables import main_rows
from orchestrator.run_folder.content_hash import content_hash
from orchestrator.run_folder.ledger import Ledger
from orchestrator.run_folder.records import AnalysisRecord, TrialRecord
from orchestrator.stages.outcomes import Outcomes


@dataclass(frozen=True)
class AnalysisJob:
    """One network to analyze."""

    id: str
    network: RunPath
    """As `lsmha.training.saved.load_network` takes it."""
    out: RunPath
    """Folder for the results."""
    config: AnalysisConfig
    num_heads: int | None = None
    """Of published weights, which do not tell."""


def analyze_network(
    job: AnalysisJob, dataset: Dataset, device: torch.device, on_progress: OnProgress
) -> list[dict[str, Any]]:
    """Analyze one network, write tables and plots to the job's folder, and return the rows of its blocks."""
    model = load_network(job.network, img_size=dataset.img_size, num_heads=job.num_heads)
    analysis = analyze(model, dataset, job.config, device=device, on_progress=on_progress)
    save_analysis(analysis, job.out)
    save_plots(analysis, job.out, title=job.id)
    return block_rows(analysis)


def analyze_finalists(
    config: SweepConfig, ledger: Ledger, progress: Progress, *, arrays: ray.ObjectRef, repeat: bool
) -> None:
    """Analyze a run's trained finalists as `config` says and record what comes out; with `repeat`, also those that were
    analyzed so before."""
    settings = config.analysis.plain()
    keys = {record.id: _key(record, settings) for record in ledger.finalists if record.completed}
    jobs = [
        AnalysisJob(run_id, ledger.finalist_folder(run_id), ledger.analysis_folder(run_id), settings)
        for run_id, key in keys.items()
        if repeat or not _is_analyzed(ledger, run_id, key)
    ]
    if not jobs:
        return

    def keep(run_id: str, blocks: list[dict[str, Any]]) -> str:
        ledger.add(AnalysisRecord(run_id, keys[run_id], blocks))
        last = main_rows(blocks)[-1]
        snr = "?" if last["field_snr"] is None else f"{last['field_snr']:.2f}"
        return f"{last['unit']}s of block {last['block']}: readout_accuracy={last['readout_accuracy']:.4f} snr={snr}"

    progress.stage("analysis", len(jobs), unit="networks")
    outcomes = Outcomes(
        progress,
        keep=keep,
        keep_failure=lambda run_id, failure: ledger.add(AnalysisRecord(run_id, keys[run_id], [], failure)),
    )
    cpus, gpus = config.analysis_resources()
    run_tasks(analyze_network, jobs, outcomes, cpus=cpus, gpus=gpus, arrays=arrays)


def _key(finalist: TrialRecord, settings: AnalysisConfig) -> str:
    return content_hash({"finalist": finalist.key, "settings": settings.model_dump(mode="json")})


def _is_analyzed(ledger: Ledger, run_id: str, key: str) -> bool:
    before = ledger.analyses.get(run_id)
    done = before is not None and before.key == key and before.completed
    return done and (ledger.analysis_folder(run_id) / "analysis.json").is_file()  # written last
