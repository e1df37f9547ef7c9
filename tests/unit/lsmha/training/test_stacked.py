"""Seeds trained together: as each would have been trained alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_data import assert_same_bits, tiny_dataset, tiny_model, tiny_recipe

from lsmha.config import AugmentConfig
from lsmha.data import Dataset
from lsmha.errors import DivergenceError
from lsmha.training import EpochMetrics, StackedTrainer, Trainer, train

CPU = torch.device("cpu")
SEEDS = (3, 0, 11)
AUGMENT = AugmentConfig(flip=True, translate=2, mixup_alpha=0.4)


@pytest.fixture(scope="module")
def tiny() -> Dataset:
    return tiny_dataset()


def _epochs(stack: StackedTrainer, count: int) -> list[list[EpochMetrics]]:
    """Metrics by seed."""
    by_epoch = [stack.run_epoch() for _ in range(count)]
    for outcomes in by_epoch:
        for outcome in outcomes:
            assert isinstance(outcome, EpochMetrics)
    return [list(curve) for curve in zip(*by_epoch, strict=True)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("model", "recipe"),
    [
        ({}, {}),
        ({"attention": "sdpa"}, {"label_smoothing": 0.1, "augment": AUGMENT}),
        ({"num_conv_blocks": 1}, {"optimizer": "sgd", "learning_rate": 0.05, "augment": AUGMENT}),
        ({"num_conv_blocks": 2, "conv_kind": "depthwise"}, {"ema_decay": 0.8}),
        ({"num_heads": 8}, {"grad_clip_norm": 0.05, "augment": AUGMENT}),
        ({"positional_embedding": "none", "conv_kind": "residual", "num_conv_blocks": 1}, {"warmup_epochs": 1.5}),
    ],
)
@pytest.mark.filterwarnings("ignore:There is a performance drop")  # CPUs have no batching rule for fused attention
def test_losses_are_those_of_separate_runs(model: dict[str, Any], recipe: dict[str, Any], tiny: Dataset) -> None:
    settings = tiny_recipe(**{"epochs": 3, "learning_rate": 3e-3, **recipe})
    together = _epochs(StackedTrainer(tiny_model(**model), settings, SEEDS, tiny, device=CPU), 3)
    for seed, found in zip(SEEDS, together, strict=True):
        alone = train(tiny_model(**model), settings.model_copy(update={"seed": seed}), tiny, device=CPU).history
        for epoch, other in zip(found, alone, strict=True):
            assert epoch.train_loss == pytest.approx(other.train_loss, abs=1e-5)
            assert epoch.val_loss == pytest.approx(other.val_loss, abs=1e-5)
            assert (epoch.epoch, epoch.learning_rate) == (other.epoch, other.learning_rate)
    assert len({found[-1].train_loss for found in together}) == len(SEEDS)


def test_a_seed_goes_on_alone_and_in_the_stack(tiny: Dataset, tmp_path: Path) -> None:
    model, recipe = tiny_model(num_conv_blocks=1), tiny_recipe(epochs=3, ema_decay=0.9, augment=AUGMENT)
    whole = StackedTrainer(model, recipe, SEEDS, tiny, device=CPU)
    expected = _epochs(whole, 3)
    begun = StackedTrainer(model, recipe, SEEDS, tiny, device=CPU)
    _epochs(begun, 1)
    files = [tmp_path / f"{seed}.pt" for seed in SEEDS]
    for state, file in zip(begun.states, files, strict=True):
        state.save(file)
    again = StackedTrainer(model, recipe, SEEDS, tiny, device=CPU)
    assert again.resume(files)
    for found, other in zip(_epochs(again, 2), expected, strict=True):
        assert [epoch.train_loss for epoch in found] == [epoch.train_loss for epoch in other[1:]]
    for state, same in zip(again.states, whole.states, strict=True):
        assert_same_bits(state.model.state_dict(), same.model.state_dict())
        assert_same_bits(state.evaluated_model.state_dict(), same.evaluated_model.state_dict())
    for seed, file, other in zip(SEEDS, files, expected, strict=True):
        alone = train(model, recipe.model_copy(update={"seed": seed}), tiny, device=CPU, resume_from=file)
        assert alone.history[-1].train_loss == pytest.approx(other[-1].train_loss, abs=1e-5)


def test_a_stack_goes_on_from_the_latest_common_epoch(tiny: Dataset, tmp_path: Path) -> None:
    recipe = tiny_recipe(epochs=4)

    def stack() -> StackedTrainer:
        return StackedTrainer(tiny_model(), recipe, SEEDS, tiny, device=CPU)

    files = [tmp_path / f"{seed}.pt" for seed in SEEDS]
    fresh = stack()
    assert fresh.resume(files)  # there is nothing: from the start
    assert [state.epoch for state in fresh.states] == [0, 0, 0]
    for epoch in (1, 2, 3):
        fresh.run_epoch()
        for index in (0, 1, 2) if epoch < 3 else (1,):  # as if it had been killed in the third epoch
            fresh.states[index].save(files[index])
    again = stack()
    assert again.resume(files)
    assert [state.epoch for state in again.states] == [2, 2, 2]
    damage: list[list[str]] = [[], [], []]
    files[0].write_bytes(b"torn")
    again = stack()
    assert not again.resume(files, on_damage=[lines.append for lines in damage])
    assert [state.epoch for state in again.states] == [0, 0, 0]
    assert [len(lines) for lines in damage] == [1, 0, 0]
    assert str(files[0]) in damage[0][0]


def test_a_checkpoint_holds_one_seed(tiny: Dataset, tmp_path: Path) -> None:
    model = tiny_model()
    stack = StackedTrainer(model, tiny_recipe(), range(8), tiny, device=CPU)
    stack.run_epoch()
    stack.states[0].save(tmp_path / "stacked.pt")
    alone = Trainer(model, tiny_recipe(), tiny, device=CPU)
    alone.run_epoch()
    alone.state.save(tmp_path / "alone.pt")
    sizes = [(tmp_path / f"{name}.pt").stat().st_size for name in ("stacked", "alone")]
    assert sizes[0] <= 1.1 * sizes[1]


@pytest.mark.parametrize("model", [{"attn_drop": 0.5}, {"drop_path": 0.5}], ids=["attn_drop", "drop_path"])
def test_dropout_is_drawn_for_each_seed_apart(model: dict[str, Any], tiny: Dataset) -> None:
    def losses(**settings: Any) -> list[float]:
        stack = StackedTrainer(tiny_model(**settings), tiny_recipe(learning_rate=1e-30), (0, 1), tiny, device=CPU)
        _same_weights_and_batches(stack)
        return [found[0].train_loss for found in _epochs(stack, 1)]

    one, other = losses(**model)
    assert one != other
    assert losses(**model) == [one, other]
    one, other = losses()
    assert one == other


def _same_weights_and_batches(stack: StackedTrainer) -> None:
    first, second = stack.states
    second.model.load_state_dict(first.model.state_dict())
    indices, seed = stack.batches.indices, first.config.seed
    stack.batches.indices = lambda *, epoch, ranks, **_: indices(  # type: ignore[method-assign]
        seed=seed, epoch=epoch, ranks=ranks
    )


def test_a_seed_that_diverges_leaves_the_others(tiny: Dataset) -> None:
    recipe = tiny_recipe(epochs=2)
    whole = StackedTrainer(tiny_model(), recipe, SEEDS, tiny, device=CPU)
    expected = _epochs(whole, 2)
    stack = StackedTrainer(tiny_model(), recipe, SEEDS, tiny, device=CPU)
    with torch.no_grad():
        stack.states[1].model.head.weight[0, 0] = float("nan")
    for epoch in range(2):
        outcomes = stack.run_epoch()
        assert isinstance(outcomes[1], DivergenceError)
        for index in (0, 2):
            outcome = outcomes[index]
            assert isinstance(outcome, EpochMetrics)
            assert outcome.train_loss == expected[index][epoch].train_loss


def test_global_generators_stay_as_they_were(tiny: Dataset) -> None:
    stack = StackedTrainer(tiny_model(attn_drop=0.3), tiny_recipe(augment=AUGMENT), SEEDS, tiny, device=CPU)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    stack.run_epoch()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("seeds", [(), (1, 1)])
def test_seeds_are_distinct(seeds: tuple[int, ...], tiny: Dataset) -> None:
    with pytest.raises(ValueError, match="seeds must be one or more distinct numbers"):
        StackedTrainer(tiny_model(), tiny_recipe(), seeds, tiny, device=CPU)
