"""`gpus_per_trial: auto`: how many trials share a GPU, by a measurement on one of the cluster's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import ray
import torch
from pydantic import ValidationError

from lsmha.bench.packing import Packing, measure_packing
from lsmha.config import ModelConfig, TrainConfig
from lsmha.data import Dataset
from lsmha.models import model_cost
from orchestrator.cluster.capacity import Capacity
from orchestrator.config.sweep import ResourcesConfig, SweepConfig
from orchestrator.config.yaml import plain_settings
from orchestrator.errors import UserError, describe_error, describe_validation_error
from orchestrator.search.space import SearchSpace

Measure = Callable[[ModelConfig, TrainConfig, int], Packing]
"""Measures a network and recipe with so many runs at most on one GPU."""


def without_gpus(config: SweepConfig, capacity: Capacity) -> SweepConfig:
    """The settings with `auto` settled, if there are no GPUs that could be shared.

    Raises:
        UserError: Something else in them needs a GPU.
    """
    if capacity.gpus:
        return config
    settled = _with_share(config, lambda resources: 0.0)
    try:
        SweepConfig.model_validate(plain_settings(settled))
    except ValidationError as error:
        raise UserError(describe_validation_error(error)) from None
    return settled


def with_gpu_share(
    config: SweepConfig,
    space: SearchSpace,
    capacity: Capacity,
    *,
    measure: Measure,
    say: Callable[[str], None],
) -> SweepConfig:
    """The settings with every `auto` replaced by what was measured; `say` gets a line about it."""

    def share(resources: ResourcesConfig) -> float:
        if resources.workers_per_trial > 1:
            return float(resources.workers_per_trial)
        most = _most_runs(resources, capacity)
        if most == 1:
            return 1.0
        model, train = _largest(space)
        say("measuring how many trials share a GPU best")
        try:
            packing = measure(model, train, most)
        except ray.exceptions.RayError as error:
            say(f"a trial has a GPU to itself, since sharing could not be measured: {describe_error(error)}")
            return 1.0
        say(_told(packing))
        return 1 / packing.runs

    return _with_share(config, share)


def on_one_gpu(capacity: Capacity, dataset: Dataset) -> Measure:
    """Measures in a Ray task that has a GPU, and the CPUs of its share of a node, to itself."""

    def measure(model: ModelConfig, train: TrainConfig, most: int) -> Packing:
        cpus = max(int(cpus // gpus) for cpus, gpus in capacity.nodes if gpus >= 1)
        task: Any = ray.remote(_measure).options(num_cpus=cpus, num_gpus=1, name="gpu share", max_retries=3)
        data_bytes = dataset.train.images.nbytes
        pending = task.remote(model.model_dump_json(), train.model_dump_json(), most, data_bytes)
        while not ray.wait([pending], timeout=1)[0]:  # with a limit, so that a signal is noticed
            pass
        return Packing(**ray.get(pending))

    return measure


def _measure(model: str, train: str, most: int, data_bytes: int) -> dict[str, Any]:
    packing = measure_packing(
        ModelConfig.model_validate_json(model),
        TrainConfig.model_validate_json(train),
        device=torch.device("cuda"),
        max_runs=most,
        data_bytes=data_bytes,
    )
    return asdict(packing)


def _with_share(config: SweepConfig, share: Callable[[ResourcesConfig], float]) -> SweepConfig:
    known: dict[ResourcesConfig, float] = {}

    def settled(resources: ResourcesConfig) -> ResourcesConfig:
        if resources.gpus_per_trial != "auto":
            return resources
        if resources not in known:
            known[resources] = share(resources)
        return resources.model_copy(update={"gpus_per_trial": known[resources]})

    finalists = config.finalists
    if finalists.resources is not None:
        finalists = finalists.model_copy(update={"resources": settled(finalists.resources)})
    return config.model_copy(update={"resources": settled(config.resources), "finalists": finalists})


def _most_runs(resources: ResourcesConfig, capacity: Capacity) -> int:
    """Trials on one GPU for which the CPUs of every node with GPUs are enough."""
    shares = [cpus / gpus for cpus, gpus in capacity.nodes if gpus >= 1]
    return max(1, int(min(shares, default=1) // resources.cpus_per_trial))


def _largest(space: SearchSpace) -> tuple[ModelConfig, TrainConfig]:
    """The network with most work for an image, and its recipe: it gains least by sharing, and takes most memory."""
    return max((space.build(point) for point in space.points), key=lambda built: model_cost(built[0]).macs)


def _told(packing: Packing) -> str:
    speeds = ", ".join(f"{runs} together {speed:,.0f}" for runs, speed in packing.images_per_s.items() if runs > 1)
    alone = f"one trains {packing.images_per_s[1]:,.0f} images/s"
    who = "a trial has a GPU to itself" if packing.runs == 1 else f"{packing.runs} trials share a GPU"
    return f"{who}: {alone}{f', {speeds}' if speeds else ''}; each takes {packing.memory / 2**30:.1f} GiB"
