"""`lsmha-sweep prune`: a run's finalists pruned by what their units stand for, against random controls.

Two rounds of Ray tasks: an analysis of every block's units for each network, then a retraining for each network,
method, threshold, seed and kind of mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import ray
import torch
from torch import Tensor

from lsmha.analysis import head_label_incidence
from lsmha.analysis.saved import load_fields
from lsmha.config import AnalysisConfig, PruningConfig
from lsmha.data import Dataset
from lsmha.io.paths import RunPath
from lsmha.progress import OnProgress
from lsmha.pruning import (
    LayerKey,
    PruningMethod,
    connection_masks,
    connections,
    kept_fraction,
    kept_of_model,
    random_masks,
    retrain,
)
from lsmha.training import evaluate
from lsmha.training.saved import load_model, load_model_config, load_train_config
from orchestrator.config.sweep import SweepConfig
from orchestrator.execution.tasks import run_tasks
from orchestrator.reporting.progress import Progress
from orchestrator.run_folder.content_hash import content_hash
from orchestrator.run_folder.ledger import Ledger
from orchestrator.run_folder.records import PrunedNetwork, PruningRecord
from orchestrator.run_folder.tables import write_tables
from orchestrator.stages.analysis import AnalysisJob, analyze_network
from orchestrator.stages.outcomes import Outcomes

MaskKind = Literal["fields", "random", "none"]


@dataclass(frozen=True)
class PruningJob:
    """One network to prune and retrain once."""

    id: str
    finalist: str
    network: RunPath
    """Folder of the trained network."""
    analysis: RunPath
    """Folder of an analysis of all taps."""
    config: PruningConfig
    method: PruningMethod
    mask: MaskKind
    """By the fields; a random control of the same sparsity; or none: the same retraining of the whole network."""
    threshold: float
    """Of `fields`; a random control follows the mask of this threshold. Without effect for `none`."""
    seed: int


def prune_finalists(
    config: SweepConfig, ledger: Ledger, progress: Progress, *, arrays: ray.ObjectRef, only: Sequence[str] = ()
) -> list[str]:
    """Prune finalists and record every retraining as it ends; `only` names them, all by default. Returns failures."""
    cpus, gpus = config.analysis_resources()
    chosen = [record.id for record in ledger.finalists if record.completed and (not only or record.id in only)]
    analyses = {run_id: ledger.folder / "pruning" / run_id for run_id in chosen}
    settings = AnalysisConfig(taps=("attn", "mlp", "block"), readout=config.pruning.readout, permutations=1)
    jobs = [AnalysisJob(run_id, ledger.finalist_folder(run_id), out, settings) for run_id, out in analyses.items()]
    (ledger.folder / "pruning").mkdir(exist_ok=True)
    progress.stage("fields of all units", len(jobs), unit="networks")
    found = Outcomes(progress, keep=lambda *_: "done")
    run_tasks(analyze_network, jobs, found, cpus=cpus, gpus=gpus, arrays=arrays)
    retrainings = [
        job
        for run_id in found.completed_ids
        for job in pruning_jobs(run_id, ledger.finalist_folder(run_id), analyses[run_id], config.pruning)
    ]

    trained = {record.id: record.key for record in ledger.finalists}
    keys = {job.id: _key(job, trained[job.finalist]) for job in retrainings}

    def keep(job_id: str, network: PrunedNetwork) -> str:
        ledger.add(PruningRecord(job_id, keys[job_id], network))
        return f"kept={network.kept_of_connections:.3f} test_accuracy={network.test_accuracy:.4f}"

    progress.stage("retraining", len(retrainings), unit="pruned networks")
    retrained = Outcomes(progress, keep=keep)
    try:
        run_tasks(prune_once, retrainings, retrained, cpus=cpus, gpus=gpus, arrays=arrays)
    finally:
        write_tables(ledger)
    return found.failures + retrained.failures


def _key(job: PruningJob, finalist: str) -> str:
    settings = job.config.model_dump(mode="json", exclude={"methods", "thresholds", "seeds"})
    variant = {"method": job.method, "mask": job.mask, "threshold": job.threshold, "seed": job.seed}
    return content_hash({"finalist": finalist, "settings": settings, **variant})


def pruning_jobs(finalist: str, network: RunPath, analysis: RunPath, config: PruningConfig) -> list[PruningJob]:
    """Every retraining of one network; none for a method that finds nothing to prune in it."""
    model = load_model_config(network)
    jobs = []
    for method in config.methods:
        if not connections(model, method):
            continue
        variants: list[tuple[MaskKind, float]] = [("none", config.thresholds[0])]
        for threshold in config.thresholds:
            variants += [("fields", threshold), ("random", threshold)]
        for mask, threshold in variants:
            for seed in config.seeds:
                name = f"{finalist}-{method}-{mask}" + ("" if mask == "none" else f"-{threshold:g}") + f"-r{seed}"
                jobs.append(PruningJob(name, finalist, network, analysis, config, method, mask, threshold, seed))
    return jobs


def prune_once(job: PruningJob, dataset: Dataset, device: torch.device, on_progress: OnProgress) -> PrunedNetwork:
    """Mask one network, retrain it, and test it once."""
    model = load_model(job.network).to(device)
    found = connections(model.config, job.method)
    labels = unit_labels(load_fields(job.analysis), job.threshold)
    if job.mask == "fields":
        masks = connection_masks(model.config, found, labels)
    elif job.mask == "random":
        generator = torch.Generator().manual_seed(job.seed)
        masks = random_masks(model.config, found, labels, generator)
    else:
        masks = {}
    trained = load_train_config(job.network)
    recipe = trained.model_copy(
        update={
            "epochs": job.config.epochs,
            "warmup_epochs": 0.0,
            "learning_rate": trained.learning_rate * job.config.learning_rate_ratio,
            "seed": job.seed,
        }
    )
    before = evaluate(model, dataset.test, dataset, device=device).accuracy
    result = retrain(
        model,
        masks,
        recipe,
        dataset,
        device=device,
        on_epoch_end=lambda _, metrics: on_progress("epochs", metrics.epoch, recipe.epochs),
    )
    return PrunedNetwork(
        id=job.finalist,
        method=job.method,
        mask=job.mask,
        threshold=None if job.mask == "none" else job.threshold,
        seed=job.seed,
        kept_of_connections=kept_fraction(masks, found) if masks else 1.0,
        kept_of_model=kept_of_model(model, masks),
        val_accuracy_masked=result.masked_val_accuracy,
        val_accuracy=result.val_accuracy,
        test_accuracy=evaluate(result.model, dataset.test, dataset, device=device).accuracy,
        test_accuracy_before=before,
        epochs=recipe.epochs,
        learning_rate=recipe.learning_rate,
        num_heads=model.config.num_heads,
        depth=model.config.depth,
        num_conv_blocks=model.config.num_conv_blocks,
        test_images=len(dataset.test),
    )


def unit_labels(fields: dict[str, Tensor], threshold: float) -> dict[LayerKey, Tensor]:
    """Labels (units, K) that each node or filter of each layer stands for, from the fields of an analysis of all taps.

    A label above the threshold on the diagonal is in exactly one cluster, so that the labels of a filter's clusters
    (AFCC) and the diagonal labels of a node (ANDC) are found alike.
    """
    labels: dict[LayerKey, Tensor] = {}
    for name, matrices in fields.items():
        block, kind, unit = name.split(".")
        if unit in ("node", "filter"):
            incidence = head_label_incidence(matrices, threshold)
            labels[kind, int(block.removeprefix("block"))] = torch.as_tensor(incidence)
    return labels
