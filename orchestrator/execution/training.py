"""How a job is trained: the one seam where `lsmha.training` meets the orchestration."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lsmha.data import Dataset
from lsmha.devices.hardware import UtilizationMeter
from lsmha.errors import DivergenceError, LsmhaError, MemoryShortageError
from lsmha.io.paths import RunPath
from lsmha.training import EpochMetrics, StackedTrainer, TrainState, train
from lsmha.training.memory import free_memory
from lsmha.training.saved import save_logits, save_model
from orchestrator.execution.training_job import (
    Completed,
    EpochEnded,
    EventCallback,
    Failed,
    Metrics,
    TrainingJob,
    TrainingResult,
    Warned,
)
from orchestrator.failures import failure_of


def run_job(job: TrainingJob, dataset: Dataset, *, device: torch.device, threads: int, on_event: EventCallback) -> None:
    """Train one configuration; tell each epoch, and that it is completed or has failed.

    Failures that are foreseen, and come again however often a run is tried (divergence, settings that do not fit), are
    told; other exceptions propagate.
    """
    _prepare(device, threads)
    utilization = UtilizationMeter(device)

    def on_epoch_end(state: TrainState, metrics: EpochMetrics) -> None:
        if state.ranks.leads:
            state.save(job.checkpoint)
        on_event(EpochEnded(job.id, metrics.asdict(), _peak_memory_gib(device), utilization.read()))

    try:
        trained = train(
            job.model,
            job.train,
            dataset,
            device=device,
            on_epoch_end=on_epoch_end,
            resume_from=job.checkpoint,
            on_damage=lambda damage: on_event(Warned(job.id, damage)),
            memory=free_memory(device),
        )
    except LsmhaError as error:
        on_event(Failed(job.id, failure_of(error)))
    else:
        on_event(Completed(job.id, _result(trained, job)))


def run_seed_group(
    jobs: Sequence[TrainingJob], dataset: Dataset, *, device: torch.device, threads: int, on_event: EventCallback
) -> bool:
    """Train jobs that differ by their seeds alone, together, and tell for each what `run_job` tells.

    Returns:
        Whether it did: not if they were broken off at different epochs, or the memory is too small for all of them.
    """
    _prepare(device, threads)
    utilization = UtilizationMeter(device)
    seeds = [job.train.seed for job in jobs]
    memory = free_memory(device)
    try:
        stack = StackedTrainer(jobs[0].model, jobs[0].train, seeds, dataset, device=device, memory=memory)
    except MemoryShortageError:
        return False
    warn = [lambda damage, job=job: on_event(Warned(job.id, damage)) for job in jobs]
    if not stack.resume([job.checkpoint for job in jobs], on_damage=warn):
        return False
    failed: set[str] = set()
    while stack.states[0].epoch < jobs[0].train.epochs and len(failed) < len(jobs):
        outcomes = stack.run_epoch()
        memory_gib, busy = _peak_memory_gib(device), utilization.read()
        for job, state, outcome in zip(jobs, stack.states, outcomes, strict=True):
            if job.id in failed:
                continue
            if isinstance(outcome, DivergenceError):
                failed.add(job.id)
                on_event(Failed(job.id, failure_of(outcome)))
            else:
                state.save(job.checkpoint)
                on_event(EpochEnded(job.id, outcome.asdict(), memory_gib, busy))
    for job, state in zip(jobs, stack.states, strict=True):
        if job.id not in failed:
            on_event(Completed(job.id, _result(state, job)))
    return True


def _prepare(device: torch.device, threads: int) -> None:
    if device.type == "cpu":
        torch.set_num_threads(threads)
    else:
        torch.cuda.init()  # before, there is nothing to reset
        torch.cuda.reset_peak_memory_stats(device)


def _peak_memory_gib(device: torch.device) -> float:
    """Most GPU memory that tensors have taken since the job began, in GiB."""
    return torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else 0.0


def _result(trained: TrainState, job: TrainingJob) -> TrainingResult:
    """What a job has come to, once it is exported."""
    return TrainingResult(
        curve=tuple(metrics.asdict() for metrics in trained.history),
        precision=trained.plan.precision,
        attention=trained.plan.attention.training if job.model.has_attention else "none",
        device=trained.device.type,
        test=export(trained, job.export) if job.export is not None and trained.ranks.leads else None,
    )


def export(trained: TrainState, folder: RunPath) -> Metrics:
    """Save the weights and, in the one look at the test set, its logits. Returns the test metrics."""
    model, dataset = trained.evaluated_model, trained.dataset
    save_model(model, folder, dataset=dataset, train_config=trained.config)
    save_logits(model, folder, "val", dataset=dataset, device=trained.device)
    test = save_logits(model, folder, "test", dataset=dataset, device=trained.device)
    return {"test_accuracy": test.accuracy, "test_loss": test.loss}
