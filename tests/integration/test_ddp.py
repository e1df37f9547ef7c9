"""Two ranks train the network that one rank trains on the same global batches."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.distributed as dist
from tiny_data import ALL_AUGMENTATION, tiny_dataset, tiny_model, tiny_recipe, without_timings

from lsmha.config import ModelConfig, TrainConfig
from lsmha.training import EpochMetrics, TrainState, predict_logits, train

CPU = torch.device("cpu")

CASES: dict[str, tuple[ModelConfig, TrainConfig]] = {
    # No batch norm and nothing random: here the batch may be shared in any way.
    "sgd": (tiny_model(), tiny_recipe(optimizer="sgd", learning_rate=0.1)),
    "sgd, clipped, averaged": (
        tiny_model(),
        tiny_recipe(optimizer="sgd", learning_rate=0.1, grad_clip_norm=0.1, ema_decay=0.5, label_smoothing=0.1),
    ),
    "adamw": (tiny_model(), tiny_recipe(optimizer="adamw")),
    # Statistics of batch norm are each rank's own on CPUs.
    "conv": (tiny_model(num_conv_blocks=1), tiny_recipe(epochs=2, learning_rate=0.01)),
    "conv, averaged": (tiny_model(num_conv_blocks=2), tiny_recipe(epochs=2, learning_rate=0.01, ema_decay=0.5)),
}
RESUMED = (
    tiny_model(num_conv_blocks=1, drop_path=0.3, attn_drop=0.3),
    tiny_recipe(epochs=3, ema_decay=0.9, augment=ALL_AUGMENTATION),
)


class Interrupted(Exception):
    pass


class Outcome(NamedTuple):
    """What a run came to, in plain values that outlive the process."""

    parameters: dict[str, np.ndarray]
    evaluated: dict[str, np.ndarray]
    """Parameters and buffers of the evaluated network."""
    history: list[dict[str, float]]
    logits: np.ndarray
    """Of the validation images."""


Runs = dict[str, dict[str, Outcome]]


def _outcome(trained: TrainState) -> Outcome:
    dataset = trained.dataset
    return Outcome(
        {name: parameter.detach().numpy() for name, parameter in trained.model.named_parameters()},
        {name: value.detach().numpy() for name, value in trained.evaluated_model.state_dict().items()},
        without_timings(trained.history),
        predict_logits(trained.evaluated_model, dataset.val.images, dataset, device=CPU).numpy(),
    )


def _run_cases(rank: int, world_size: int, folder: Path) -> dict[str, Outcome]:
    """Child process: all the cases, as one of the ranks."""
    torch.set_num_threads(1)
    dataset = tiny_dataset()
    if world_size == 1:
        untrained = TrainState(*CASES["sgd"], dataset, device=CPU)
        return {"untrained": _outcome(untrained)} | {
            name: _outcome(train(*case, dataset, device=CPU)) for name, case in CASES.items()
        }
    store = f"file://{folder / 'store'}"
    dist.init_process_group("gloo", store, rank=rank, world_size=world_size, timeout=timedelta(seconds=60))
    try:
        outcomes = {name: _outcome(train(*case, dataset, device=CPU)) for name, case in CASES.items()}
        outcomes["whole"] = _outcome(train(*RESUMED, dataset, device=CPU))
        outcomes["resumed"] = _outcome(_train_with_interruption(folder / "run.pt"))
        return outcomes
    finally:
        dist.destroy_process_group()


def _train_with_interruption(checkpoint: Path) -> TrainState:
    def save_and_stop(state: TrainState, metrics: EpochMetrics) -> None:
        if state.ranks.leads:
            state.save(checkpoint)
        raise Interrupted

    try:
        train(*RESUMED, tiny_dataset(), device=CPU, on_epoch_end=save_and_stop)
    except Interrupted:
        dist.barrier()
    return train(*RESUMED, tiny_dataset(), device=CPU, resume_from=checkpoint)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Outcomes of all the cases: of one rank alone, and of each of two."""
    folder = tmp_path_factory.mktemp("ddp")
    places = {"alone": (0, 1), "rank 0": (0, 2), "rank 1": (1, 2)}
    with ProcessPoolExecutor(len(places), mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = {name: pool.submit(_run_cases, *place, folder) for name, place in places.items()}
        return {name: future.result() for name, future in futures.items()}


def _largest_difference(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> dict[str, float]:
    assert one.keys() == other.keys()
    return {name: float(np.abs(value.astype(np.float64) - other[name]).max()) for name, value in one.items()}


def _assert_equal(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert set(_largest_difference(one, other).values()) == {0.0}
    assert [value.dtype for value in one.values()] == [value.dtype for value in other.values()]


@pytest.mark.parametrize("case", ["sgd", "sgd, clipped, averaged", "adamw"])
def test_two_ranks_train_what_one_rank_trains(case: str, runs: Runs) -> None:
    alone = runs["alone"][case]
    for rank in ("rank 0", "rank 1"):
        outcome = runs[rank][case]
        for weights in ("parameters", "evaluated"):
            differences = _largest_difference(getattr(alone, weights), getattr(outcome, weights))
            assert max(differences.values()) < 1e-6
        np.testing.assert_allclose(outcome.logits, alone.logits, rtol=0, atol=1e-6)
        for metrics, expected in zip(outcome.history, alone.history, strict=True):
            assert metrics == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("case", ["sgd", "sgd, clipped, averaged", "adamw"])
def test_that_is_no_agreement_of_weights_at_rest(case: str, runs: Runs) -> None:
    moved = _largest_difference(runs["alone"][case].parameters, runs["alone"]["untrained"].parameters)
    assert max(moved.values()) > 1e-3


@pytest.mark.parametrize("case", [*CASES, "whole", "resumed"])
def test_ranks_agree_bit_by_bit(case: str, runs: Runs) -> None:
    one, other = runs["rank 0"][case], runs["rank 1"][case]
    _assert_equal(one.parameters, other.parameters)
    _assert_equal(one.evaluated, other.evaluated)  # statistics of batch norm included
    assert one.history == other.history
    assert np.array_equal(one.logits, other.logits)


@pytest.mark.parametrize("case", ["conv", "conv, averaged"])
def test_batch_norm_takes_part_in_what_ranks_agree_on(case: str, runs: Runs) -> None:
    evaluated = runs["rank 0"][case].evaluated
    means = [value for name, value in evaluated.items() if name.endswith("running_mean")]
    assert means
    assert all(value.any() for value in means)


def test_resumed_ranks_equal_uninterrupted_ones(runs: Runs) -> None:
    for rank in ("rank 0", "rank 1"):
        whole, resumed = runs[rank]["whole"], runs[rank]["resumed"]
        assert [metrics["epoch"] for metrics in resumed.history] == [1, 2, 3]
        assert resumed.history == whole.history
        _assert_equal(resumed.parameters, whole.parameters)
        _assert_equal(resumed.evaluated, whole.evaluated)
        assert np.array_equal(resumed.logits, whole.logits)
