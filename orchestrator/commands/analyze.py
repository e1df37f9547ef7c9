"""`lsmha-sweep analyze`: a run's finalists, or any checkpoint."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ray
from pydantic import ValidationError
from rich.console import Console
from rich.text import Text

from lsmha.analysis.analyze import check_fit
from lsmha.config import DataConfig
from lsmha.data import Dataset
from lsmha.io.paths import RunPath
from lsmha.training.saved import load_checkpoint, load_data_description
from orchestrator.cluster.capacity import check_task
from orchestrator.cluster.connect import connect
from orchestrator.cluster.loss import ends_if_cluster_is_lost
from orchestrator.commands.options import validated
from orchestrator.commands.preflight import check_analysis, load_data
from orchestrator.commands.session import open_run
from orchestrator.config.sweep import AnalysisStageConfig
from orchestrator.config.yaml import apply_override
from orchestrator.errors import UserError, describe_validation_error, report_failures
from orchestrator.execution.tasks import run_tasks
from orchestrator.interrupts import interrupts_as_exceptions
from orchestrator.plain_text import print_plain
from orchestrator.reporting.progress import sweep_progress
from orchestrator.reporting.report import write_summary
from orchestrator.reporting.tables import analysis_table
from orchestrator.run_folder.location import check_output_folder
from orchestrator.stages.analysis import AnalysisJob, analyze_finalists, analyze_network
from orchestrator.stages.outcomes import Outcomes


def analyze_run(run: RunPath, overrides: list[str], console: Console, *, address: str | None, quiet: bool) -> int:
    """Analyze the trained finalists of a run, in place of earlier analyses; exit code 1 if one failed.

    Raises:
        UserError: Something asked for cannot work; nothing has been written.
    """
    with open_run(run, overrides, console, address=address, quiet=quiet) as opened:
        try:
            analyze_finalists(opened.config, opened.ledger, opened.progress, arrays=opened.arrays, repeat=True)
        finally:
            opened.ledger.write_tables()
    ledger = opened.ledger
    if not quiet:
        for run_id, one in sorted(ledger.analyses.items()):
            if one["status"] == "completed":
                console.print(analysis_table(run_id, one["blocks"]))
        print_plain(console, f"analyses: {ledger.folder / 'analysis'}")
    write_summary(ledger)
    failures = [f"{run_id}: {one['error']}" for run_id, one in ledger.analyses.items() if one["status"] == "failed"]
    return report_failures(failures)


def analyze_checkpoint(
    checkpoint: RunPath,
    out: RunPath | None,
    overrides: list[str],
    console: Console,
    *,
    num_heads: int | None,
    data: dict[str, Any],
    address: str | None,
    quiet: bool,
) -> int:
    """Analyze one network: a folder with our weights, or a file of published ones. Returns the exit code.

    Args:
        checkpoint: As `lsmha.training.saved.load_checkpoint` takes it.
        out: Folder for the results; `analysis` in the checkpoint's folder by default, `<file>-analysis` beside a file.
        overrides: `data.x=value` and `analysis.x=value` settings.
        console: Where to print.
        num_heads: Of published weights.
        data: `DataConfig` fields; a checkpoint of ours knows the name of its data set.
        address: Ray cluster to join.
        quiet: Print errors only.

    Raises:
        UserError: Something asked for cannot work; nothing has been written.
    """
    ours = checkpoint.is_dir()
    if not checkpoint.exists():
        raise UserError(f"RUN|CHECKPOINT: must exist, but got {str(checkpoint)!r}")
    try:
        described = load_data_description(checkpoint) if ours else {}
        if "name" not in data and "name" not in described:
            raise UserError("--data: must name the data set for published weights, but is not given")
        content: dict[str, Any] = {"data": {"name": described.get("name"), **data}, "analysis": {}}
        for override in overrides:
            apply_override(content, override)
        if unknown := content.keys() - {"data", "analysis"}:
            raise UserError(f"--set: only data and analysis of a checkpoint can be set, but got {min(unknown)!r}")
        settings = validated(AnalysisStageConfig, content["analysis"], prefix="analysis")
        dataset = load_data(validated(DataConfig, content["data"], prefix="data"), console, quiet=quiet)
        if ours:
            # The network sees images as it did in training, whatever part of them is for training today.
            dataset = replace(dataset, mean=tuple(described["mean"]), std=tuple(described["std"]))
            if dataset.name == described["name"] and dataset.fingerprint != described["test_fingerprint"]:
                raise UserError(
                    "data: must give the test set that the network was trained beside (fingerprint "
                    f"{described['test_fingerprint'][:12]}), but got {dataset.fingerprint[:12]}; see data.path, "
                    "data.split_seed, data.val_fraction and data.img_size"
                )
        _check(checkpoint, dataset, num_heads)
        check_analysis("analysis", settings.readout, dataset)
    except UserError:
        raise
    except ValidationError as error:
        raise UserError(f"RUN|CHECKPOINT: {describe_validation_error(error)}") from None
    except (ValueError, OSError) as error:
        raise UserError(f"RUN|CHECKPOINT: {error}") from None
    folder = out or (checkpoint / "analysis" if ours else checkpoint.with_name(f"{checkpoint.stem}-analysis"))
    check_output_folder(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    cpus, gpus = settings.cpus_per_task or 1, settings.gpus_per_task or 0
    job = AnalysisJob(checkpoint.stem, checkpoint.absolute(), folder.absolute(), settings.plain(), num_heads)
    with connect(address) as capacity, interrupts_as_exceptions(), ends_if_cluster_is_lost("repeat the command"):
        check_task(cpus, gpus, capacity)
        with sweep_progress(console, lambda: Text(""), quiet=quiet) as progress:
            progress.stage("analysis", 1, unit="network")
            found: dict[str, list[dict[str, Any]]] = {}

            def keep(run_id: str, blocks: list[dict[str, Any]]) -> str:
                found[run_id] = blocks
                return "done"

            outcomes = Outcomes(progress, keep=keep)
            run_tasks(analyze_network, [job], outcomes, cpus=cpus, gpus=gpus, arrays=ray.put(dataset.to_arrays()))
    if found and not quiet:
        console.print(analysis_table(job.id, found[job.id]))
        print_plain(console, f"folder: {folder}")
    return report_failures(outcomes.failures)


def _check(checkpoint: RunPath, dataset: Dataset, num_heads: int | None) -> None:
    model = load_checkpoint(checkpoint, img_size=dataset.img_size, num_heads=num_heads)
    check_fit(model, dataset)
