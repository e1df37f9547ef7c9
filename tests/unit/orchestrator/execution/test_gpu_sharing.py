"""`gpus_per_trial: auto`: what is chosen from measurements, and for whom."""

from __future__ import annotations

from typing import Any

import pytest
import ray

from lsmha.bench.packing import Packing, choose_packing
from lsmha.config import ModelConfig, TrainConfig
from lsmha.errors import SubjectError
from orchestrator.cluster.capacity import Capacity
from orchestrator.config.sweep import SweepConfig
from orchestrator.errors import UserError
from orchestrator.execution.gpu_sharing import resolve_gpu_share
from orchestrator.search.build import build_space

GIB = 1 << 30


@pytest.mark.parametrize(
    ("speeds", "each", "max_runs", "runs", "measured"),
    [
        ([100, 190, 300, 320, 900], 1, 64, 4, [1, 2, 4, 8]),
        ([100, 109], 1, 64, 1, [1, 2]),
        ([100, 200, 400, 800], 1, 7, 4, [1, 2, 4]),
        ([100, 200, 400, 800], 1, 1, 1, [1]),
        ([100, 200, 400, 800], 20, 64, 4, [1, 2, 4]),
        ([100, 200, 400, 800], 30, 64, 2, [1, 2]),
        ([100, 200, SubjectError("out of memory")], 1, 64, 2, [1, 2]),
    ],
    ids=["gain ends", "no gain", "few CPUs", "one CPU", "memory for 4", "memory for 2", "does not fit after all"],
)
def test_runs_are_doubled_while_it_pays(
    speeds: list[Any], each: int, max_runs: int, runs: int, measured: list[int]
) -> None:
    def measure(count: int) -> tuple[float, int]:
        speed = speeds[count.bit_length() - 1]
        if isinstance(speed, Exception):
            raise speed
        return speed, each * GIB

    packing = choose_packing(measure, max_runs=max_runs, memory=100 * GIB)
    assert packing == Packing(runs, dict(zip(measured, speeds, strict=False)), each * GIB)


def test_a_network_that_cannot_train_is_an_error() -> None:
    def measure(count: int) -> tuple[float, int]:
        raise SubjectError("no kernel")

    with pytest.raises(SubjectError, match="no kernel"):
        choose_packing(measure, max_runs=4, memory=GIB)


def _config(
    resources: dict[str, Any], finalists: dict[str, Any] | None = None, **sections: dict[str, Any]
) -> SweepConfig:
    return SweepConfig.model_validate(
        {
            "name": "shared",
            "data": {"name": "digits"},
            "model": {"embed_dim": 32},
            "space": {"depth": [1, 3, 2], "num_heads": [1, 4]},
            "resources": resources,
            "finalists": finalists or {},
            **sections,
        }
    )


class Measured:
    """Stands in for a GPU, and keeps what was asked of it."""

    def __init__(self, runs: int = 4) -> None:
        self.runs = runs
        self.asked: list[tuple[int, int]] = []
        self.said: list[str] = []

    def __call__(self, model: ModelConfig, train: TrainConfig, max_runs: int) -> Packing:
        self.asked.append((model.depth, max_runs))
        return Packing(self.runs, {1: 1000.0, 2: 1900.0, 4: 3500.0}, GIB)


def _resolve(config: SweepConfig, measured: Any, nodes: Any = ((16, 1.0), (16, 2.0))) -> SweepConfig:
    return resolve_gpu_share(config, build_space(config), Capacity(nodes), measure=measured, say=measured.said.append)


def test_auto_becomes_the_share_of_a_trial_measured_with_the_largest_network() -> None:
    measured = Measured()
    resolved = _resolve(_config({"gpus_per_trial": "auto"}), measured)
    assert resolved.resources.gpus_per_trial == resolved.finalist_resources().gpus_per_trial == 0.25
    assert measured.asked == [(3, 8)]  # 16 CPUs for two GPUs
    assert measured.said[-1] == (
        "4 trials share a GPU: one trains 1,000 images/s, 2 together 1,900, 4 together 3,500; each takes 1.0 GiB"
    )


def test_what_was_not_left_open_stays() -> None:
    measured = Measured()
    config = _config({"gpus_per_trial": 1}, {"resources": {"gpus_per_trial": "auto", "cpus_per_trial": 4}})
    resolved = _resolve(config, measured)
    assert (resolved.resources.gpus_per_trial, resolved.finalist_resources().gpus_per_trial) == (1, 0.25)
    assert measured.asked == [(3, 2)]
    assert config.finalist_resources().gpus_per_trial == "auto"  # as the run's record has it


def test_equal_resources_are_measured_once() -> None:
    measured = Measured()
    _resolve(_config({"gpus_per_trial": "auto"}, {"resources": {"gpus_per_trial": "auto"}}), measured)
    assert len(measured.asked) == 1


@pytest.mark.parametrize(
    ("resources", "gpus"),
    [
        ({"gpus_per_trial": "auto", "workers_per_trial": 2, "cpus_per_trial": 2}, 2.0),
        ({"gpus_per_trial": "auto", "cpus_per_trial": 5}, 1.0),
    ],
    ids=["a GPU for each rank", "CPUs for one trial only"],
)
def test_nothing_is_measured_where_nothing_can_be_shared(resources: dict[str, Any], gpus: float) -> None:
    measured = Measured()
    assert _resolve(_config(resources), measured).resources.gpus_per_trial == gpus
    assert measured.asked == []


def test_a_measurement_that_fails_costs_no_sweep() -> None:
    class Failing(Measured):
        def __call__(self, model: ModelConfig, train: TrainConfig, max_runs: int) -> Packing:
            raise ray.exceptions.RaySystemError("the GPU fell off the bus")

    measured = Failing()
    assert _resolve(_config({"gpus_per_trial": "auto"}), measured).resources.gpus_per_trial == 1.0
    assert "could not be measured" in measured.said[-1]
    assert "fell off the bus" in measured.said[-1]


def test_without_gpus_auto_is_none() -> None:
    config = _config({"gpus_per_trial": "auto"}, {"resources": {"gpus_per_trial": "auto"}})
    space = build_space(config)
    resolved = resolve_gpu_share(config, space, Capacity(((8, 0.0),)), measure=None)
    assert resolved.resources.gpus_per_trial == resolved.finalist_resources().gpus_per_trial == 0
    assert not resolved.latency_on_gpu()
    assert resolve_gpu_share(config, space, Capacity(((8, 1.0),)), measure=None) is config
    assert config.latency_on_gpu()


@pytest.mark.parametrize("section", ["train", "latency"])
def test_what_needs_a_gpu_is_refused_where_auto_finds_none(section: str) -> None:
    config = _config({"gpus_per_trial": "auto"}, **{section: {"mode": "cuda-graph"}})
    with pytest.raises(UserError, match=rf"^{section}\.mode: must be eager or compiled where .*'cuda-graph'$"):
        resolve_gpu_share(config, build_space(config), Capacity(((8, 0.0),)), measure=None)
