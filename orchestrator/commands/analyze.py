"""`lsmha-sweep analyze`: a run's finalists, or any trained network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
from pydantic import ValidationError

from lsmha.analysis.analyze import check_fit
from lsmha.config import DataConfig
from lsmha.data import Dataset
from lsmha.io.paths import RunPath
from lsmha.training.saved import load_data_description, load_network
from orchestrator.cluster.capacity import check_task
from orchestrator.cluster.connect import ClusterChoice
from orchestrator.commands.preflight import check_analysis, load_data
from orchestrator.commands.session import open_finished_run, session
from orchestrator.config.sweep import AnalysisStageConfig
from orchestrator.config.validation import describe_validation_error, validated
from orchestrator.config.yaml import apply_override
from orchestrator.errors import ExitCode, UserError, report_failures
from orchestrator.execution.tasks import run_tasks
from orchestrator.reporting.artifacts import write_tracebacks
from orchestrator.reporting.summary import write_summary
from orchestrator.reporting.tables import analysis_table
from orchestrator.run_folder.location import check_output_folder
from orchestrator.run_folder.tables import write_tables
from orchestrator.stages.analysis import AnalysisJob, analyze_finalists, analyze_network
from orchestrator.stages.outcomes import Outcomes
from orchestrator.terminal import Terminal


def analyze_run(run: RunPath, overrides: list[str], terminal: Terminal, cluster: ClusterChoice) -> ExitCode:
    """Analyze the trained finalists of a run, in place of earlier analyses; `NO_RESULT` if one failed.

    Raises:
        UserError: Something asked for cannot work; nothing has been written.
    """
    with open_finished_run(run, overrides, terminal, cluster) as opened:
        ledger = opened.ledger
        try:
            analyze_finalists(opened.config, ledger, opened.progress, arrays=opened.arrays, repeat=True)
        finally:
            write_tables(ledger)
            write_tracebacks(ledger)
        write_summary(ledger)
    for run_id, analysis in sorted(ledger.analyses.items()):
        if analysis.completed:
            terminal.show(analysis_table(run_id, analysis.blocks))
    terminal.say(f"analyses: {ledger.folder / 'analysis'}")
    failures = {run_id: analysis.failure for run_id, analysis in ledger.analyses.items()}
    return report_failures([f"{run_id}: {failure.reason}" for run_id, failure in failures.items() if failure])


@dataclass(frozen=True)
class _Request:
    """The analysis of one network, checked."""

    job: AnalysisJob
    settings: AnalysisStageConfig
    dataset: Dataset


def analyze_checkpoint(
    checkpoint: RunPath,
    out: RunPath | None,
    overrides: list[str],
    terminal: Terminal,
    cluster: ClusterChoice,
    *,
    num_heads: int | None,
    data: dict[str, Any],
) -> ExitCode:
    """Analyze one network: a folder with our weights, or a file of published ones.

    Args:
        checkpoint: As `lsmha.training.saved.load_network` takes it.
        out: Folder for the results; `analysis` in the checkpoint's folder by default, `<file>-analysis` beside a file.
        overrides: `data.x=value` and `analysis.x=value` settings.
        terminal: Where to print.
        cluster: Which to join or start.
        num_heads: Of published weights.
        data: `DataConfig` fields; a network of ours knows the name of its data set.

    Raises:
        UserError: Something asked for cannot work; nothing has been written.
    """
    request = _checked_request(checkpoint, out, overrides, terminal, num_heads=num_heads, data=data)
    job, folder = request.job, request.job.out
    folder.parent.mkdir(parents=True, exist_ok=True)
    cpus, gpus = request.settings.cpus_per_task or 1, request.settings.gpus_per_task or 0
    found: list[Sequence[Mapping[str, Any]]] = []

    def keep(_: str, blocks: Sequence[Mapping[str, Any]]) -> str:
        found.append(blocks)
        return "done"

    with session(
        None,
        terminal,
        cluster=cluster,
        again="repeat the command",
        fits=lambda capacity: check_task(cpus, gpus, capacity),
    ) as begun:
        begun.progress.stage("analysis", 1, unit="network")
        outcomes = Outcomes(begun.progress, keep=keep)
        arrays = ray.put(request.dataset.to_arrays())
        run_tasks(analyze_network, [job], outcomes, cpus=cpus, gpus=gpus, arrays=arrays)
    for blocks in found:
        terminal.show(analysis_table(job.id, blocks))
        terminal.say(f"folder: {folder}")
    return report_failures(outcomes.failures)


def _checked_request(
    checkpoint: RunPath,
    out: RunPath | None,
    overrides: list[str],
    terminal: Terminal,
    *,
    num_heads: int | None,
    data: dict[str, Any],
) -> _Request:
    """What is asked for, with the data loaded and the network read once."""
    if not checkpoint.exists():
        raise UserError(f"RUN|CHECKPOINT: must exist, but got {str(checkpoint)!r}")
    ours = checkpoint.is_dir()
    try:
        described = load_data_description(checkpoint) if ours else {}
        content = _settings(described, data, overrides)
        settings = validated(AnalysisStageConfig, content["analysis"], prefix="analysis")
        dataset = load_data(validated(DataConfig, content["data"], prefix="data"), terminal)
        if ours:
            dataset = _as_trained(dataset, described)
        network = load_network(checkpoint, img_size=dataset.img_size, num_heads=num_heads, on_note=terminal.say)
        check_fit(network, dataset)
        check_analysis("analysis", settings.readout, dataset)
    except UserError:
        raise
    except ValidationError as error:
        raise UserError(f"RUN|CHECKPOINT: {describe_validation_error(error)}") from None
    except (ValueError, OSError) as error:
        raise UserError(f"RUN|CHECKPOINT: {error}") from None
    folder = out or (checkpoint / "analysis" if ours else checkpoint.with_name(f"{checkpoint.stem}-analysis"))
    check_output_folder(folder)
    job = AnalysisJob(checkpoint.stem, checkpoint.absolute(), folder.absolute(), settings.plain(), num_heads)
    return _Request(job, settings, dataset)


def _settings(described: Mapping[str, Any], data: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    if "name" not in data and "name" not in described:
        raise UserError("--data: must name the data set for published weights, but is not given")
    content: dict[str, Any] = {"data": {"name": described.get("name"), **data}, "analysis": {}}
    for override in overrides:
        apply_override(content, override)
    if unknown := content.keys() - {"data", "analysis"}:
        raise UserError(f"--set: only data and analysis of a checkpoint can be set, but got {min(unknown)!r}")
    return content


def _as_trained(dataset: Dataset, described: Mapping[str, Any]) -> Dataset:
    """The images as the network saw them in training, whatever part of them is for training today."""
    dataset = replace(dataset, mean=tuple(described["mean"]), std=tuple(described["std"]))
    if dataset.name == described["name"] and dataset.fingerprint != described["test_fingerprint"]:
        raise UserError(
            "data: must give the test set that the network was trained beside (fingerprint "
            f"{described['test_fingerprint'][:12]}), but got {dataset.fingerprint[:12]}; see data.path, "
            "data.split_seed, data.val_fraction and data.img_size"
        )
    return dataset
