"""`gpus_per_trial: auto`: how many trials share a GPU, by a measurement on one of the cluster's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import ray
import torch

from lsmha.bench.packing import Packing, measure_packing
from lsmha.config import ModelConfig, TrainConfig
from lsmha.data import Dataset
from lsmha.models import model_cost
from orchestrator.cluster.capacity import Capacity
from orchestrator.config.sweep import ResourcesConfig, SweepConfig
from orchestrator.config.validation import validated
from orchestrator.config.yaml import plain_settings
from orchestrator.execution.waiting import result_of
from orchestrator.failures import describe_error
from orchestrator.search.space import SearchSpace

Measure = Callable[[ModelConfig, TrainConfig, int], Packing]
"""Measures a network and recipe with so many runs at most on one GPU."""


def resolve_gpu_share(
    config: SweepConfig,
    space: SearchSpace,
    capacity: Capacity,
    *,
    measure: Measure | None,
    say: Callable[[str], None] = lambda _: None,
) -> SweepConfig:
    """The settings with every `gpus_per_trial: auto` resolved: 0 on a cluster without GPUs, else what was measured.

    Args:
        config: The settings.
        space: Its largest network is measured.
        capacity: Of the cluster.
        measure: How; with None, what would have to be measured stays `auto`.
        say: Gets a line about it.

    Raises:
        UserError: There is no GPU, and something else in the settings needs one.
    """
    if not capacity.gpus:
        resolved = _with_share(config, lambda resources: 0.0)
        validated(SweepConfig, plain_settings(resolved))
        return resolved
    if measure is None:
        return config
    return _with_share(config, lambda resources: _measured_share(resources, space, capacity, measure, say))


def _measured_share(
    resources: ResourcesConfig,
    space: SearchSpace,
    capacity: Capacity,
    measure: Measure,
    say: Callable[[str], None],
) -> float:
    """GPUs of one trial."""
    if resources.workers_per_trial > 1:
        return float(resources.workers_per_trial)
    max_runs = _max_runs(resources, capacity)
    if max_runs == 1:
        return 1.0
    model, train = _largest(space)
    say("measuring how many trials share a GPU best")
    try:
        packing = measure(model, train, max_runs)
    except ray.exceptions.RayError as error:
        say(f"a trial has a GPU to itself, since sharing could not be measured: {describe_error(error)}")
        return 1.0
    say(_described(packing))
    return 1 / packing.runs


def on_one_gpu(capacity: Capacity, dataset: Dataset) -> Measure:
    """Measures in a Ray task that has a GPU, and the CPUs of its share of a node, to itself."""

    def measure(model: ModelConfig, train: TrainConfig, max_runs: int) -> Packing:
        cpus = max(int(cpus // gpus) for cpus, gpus in capacity.nodes if gpus >= 1)
        task: Any = ray.remote(_measure).options(num_cpus=cpus, num_gpus=1, name="gpu share", max_retries=3)
        data_bytes = dataset.train.images.nbytes
        pending = task.remote(model.model_dump_json(), train.model_dump_json(), max_runs, data_bytes)
        return Packing(**result_of(pending))

    return measure


def _measure(model: str, train: str, max_runs: int, data_bytes: int) -> dict[str, Any]:
    packing = measure_packing(
        ModelConfig.model_validate_json(model),
        TrainConfig.model_validate_json(train),
        device=torch.device("cuda"),
        max_runs=max_runs,
        data_bytes=data_bytes,
    )
    return asdict(packing)


def _with_share(config: SweepConfig, share: Callable[[ResourcesConfig], float]) -> SweepConfig:
    known: dict[ResourcesConfig, float] = {}

    def resolved(resources: ResourcesConfig) -> ResourcesConfig:
        if resources.gpus_per_trial != "auto":
            return resources
        if resources not in known:
            known[resources] = share(resources)
        return resources.model_copy(update={"gpus_per_trial": known[resources]})

    finalists = config.finalists
    if finalists.resources is not None:
        finalists = finalists.model_copy(update={"resources": resolved(finalists.resources)})
    return config.model_copy(update={"resources": resolved(config.resources), "finalists": finalists})


def _max_runs(resources: ResourcesConfig, capacity: Capacity) -> int:
    """Trials on one GPU for which the CPUs of every node with GPUs are enough."""
    shares = [cpus / gpus for cpus, gpus in capacity.nodes if gpus >= 1]
    return max(1, int(min(shares, default=1) // resources.cpus_per_trial))


def _largest(space: SearchSpace) -> tuple[ModelConfig, TrainConfig]:
    """The network with most work for an image, and its recipe: it gains least by sharing, and takes most memory."""
    return max((space.build(point) for point in space.points), key=lambda built: model_cost(built[0]).macs)


def _described(packing: Packing) -> str:
    speeds = ", ".join(f"{runs} together {speed:,.0f}" for runs, speed in packing.images_per_s.items() if runs > 1)
    alone = f"one trains {packing.images_per_s[1]:,.0f} images/s"
    who = "a trial has a GPU to itself" if packing.runs == 1 else f"{packing.runs} trials share a GPU"
    return f"{who}: {alone}{f', {speeds}' if speeds else ''}; each takes {packing.memory / 2**30:.1f} GiB"
