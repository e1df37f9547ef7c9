"""One epoch and what it is made of: batches, steps, clipping, averaging, divergence, and what it leaves alone."""

from __future__ import annotations

import random
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_data import ALL_AUGMENTATION, assert_same_bits, tiny_dataset, tiny_model, tiny_recipe
from torch import Tensor
from torch.nn import functional as F

from lsmha.config import AugmentConfig
from lsmha.data import Dataset, normalize
from lsmha.errors import DivergenceError
from lsmha.training import Trainer, evaluate, train
from lsmha.training.optimization import learning_rate_at
from lsmha.training.ranks import Ranks

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")


def _trainer(dataset: Dataset, *, model: dict[str, Any] | None = None, **recipe: Any) -> Trainer:
    return Trainer(tiny_model(**(model or {})), tiny_recipe(**recipe), dataset, device=CPU)


# Learning


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("num_conv_blocks", [0, 1, 2])
def test_learns_separable_images(optimizer: str, num_conv_blocks: int, tiny: Dataset) -> None:
    recipe = tiny_recipe(epochs=20, learning_rate=0.02 if optimizer == "adamw" else 0.1, optimizer=optimizer)
    trained = train(tiny_model(num_conv_blocks=num_conv_blocks), recipe, tiny, device=CPU)
    assert trained.history[-1].val_accuracy > 0.9
    assert evaluate(trained.evaluated_model, tiny.test, tiny, device=CPU).accuracy > 0.9
    assert trained.history[-1].train_loss < trained.history[0].train_loss


def test_history_holds_what_each_epoch_did(tiny: Dataset) -> None:
    recipe = tiny_recipe(epochs=3, warmup_epochs=1.0, learning_rate=0.02)
    seen = []
    trained = train(tiny_model(), recipe, tiny, device=CPU, on_epoch_end=lambda _, metrics: seen.append(metrics))
    assert seen == trained.history
    assert [metrics.epoch for metrics in seen] == [1, 2, 3]
    assert [metrics.learning_rate for metrics in seen] == [
        learning_rate_at(step, total_steps=9, steps_per_epoch=3, config=recipe) for step in (2, 5, 8)
    ]
    assert (seen[-1].val_loss, seen[-1].val_accuracy) == evaluate(trained.model, tiny.val, tiny, device=CPU)
    assert all(metrics.seconds > 0 and metrics.images_per_s > 0 for metrics in seen)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.3])
def test_train_loss_is_the_smoothed_cross_entropy_written_out(label_smoothing: float, tiny: Dataset) -> None:
    # One step: the loss is that of the initial weights on the first batch.
    trainer = _trainer(tiny, batch_size=48, label_smoothing=label_smoothing)
    with torch.no_grad():
        log_probabilities = trainer.state.model(normalize(tiny.train.images, tiny.mean, tiny.std)).log_softmax(dim=1)
    targets = F.one_hot(tiny.train.labels, 3) * (1 - label_smoothing) + label_smoothing / 3
    expected = -(targets * log_probabilities).sum(dim=1).mean().item()
    assert trainer.run_epoch().train_loss == pytest.approx(expected, rel=1e-5)


def test_steps_are_those_of_plain_sgd_written_out(tiny: Dataset) -> None:
    settings: dict[str, Any] = {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.1, "learning_rate": 0.05}
    trainer, reference = _trainer(tiny, **settings), _trainer(tiny, **settings)
    model, order = reference.state.model, {"seed": 0, "epoch": 1, "ranks": reference.state.ranks}
    weights = {name: value for name, value in model.named_parameters() if value.requires_grad}
    decayed = {id(parameter) for parameter in reference.state.optimizer.param_groups[0]["params"]}
    for step, batch in enumerate(reference.batches.indices(**order)):
        inputs = normalize(tiny.train.images[batch], tiny.mean, tiny.std)
        loss = F.cross_entropy(model.train()(inputs), tiny.train.labels[batch])
        gradients = torch.autograd.grad(loss, list(weights.values()))
        rate = 0.05 * (1 + np.cos(np.pi * step / 3)) / 2
        with torch.no_grad():
            for parameter, gradient in zip(weights.values(), gradients, strict=True):
                decay = 0.1 if id(parameter) in decayed else 0.0
                parameter -= rate * (gradient + decay * parameter)
    trainer.run_epoch()
    expected = dict(model.named_parameters())
    for name, parameter in trainer.state.model.named_parameters():
        torch.testing.assert_close(parameter, expected[name], atol=1e-7, rtol=1e-6)


def test_gradients_are_clipped_to_the_limit(tiny: Dataset) -> None:
    norms: dict[float | None, list[float]] = {}
    for limit in (None, 0.05):
        trainer = _trainer(tiny, grad_clip_norm=limit)
        norms[limit] = []

        def note(
            optimizer: torch.optim.Optimizer, *_: Any, trainer: Trainer = trainer, out: list[float] = norms[limit]
        ) -> None:
            gradients = [parameter.grad for parameter in trainer.state.model.parameters() if parameter.grad is not None]
            out.append(torch.cat([gradient.flatten() for gradient in gradients]).norm().item())

        trainer.state.optimizer.register_step_pre_hook(note)
        trainer.run_epoch()
    assert len(norms[None]) == len(norms[0.05]) == 3
    assert min(norms[None]) > 0.05
    assert norms[0.05] == pytest.approx([0.05] * 3, rel=1e-4)


@pytest.mark.parametrize("num_conv_blocks", [0, 2])
def test_moving_average_follows_its_formula(num_conv_blocks: int, tiny: Dataset) -> None:
    trainer = _trainer(tiny, model={"num_conv_blocks": num_conv_blocks}, ema_decay=0.8, learning_rate=0.01)
    snapshots: list[dict[str, Tensor]] = []
    trainer.state.optimizer.register_step_post_hook(
        lambda *_: snapshots.append({name: value.clone() for name, value in trainer.state.model.state_dict().items()})
    )
    metrics = trainer.run_epoch()
    assert len(snapshots) == 3
    averaged = trainer.state.evaluated_model.state_dict()
    changed = 0
    for name, value in averaged.items():
        if value.is_floating_point():
            first, second, third = (snapshot[name] for snapshot in snapshots)
            expected = 0.8 * (0.8 * first + 0.2 * second) + 0.2 * third  # starts as the weights after one step
            torch.testing.assert_close(value, expected, atol=1e-7, rtol=1e-6)
            changed += not torch.equal(value, third)
    assert changed > 5
    assert trainer.state.evaluated_model is not trainer.state.model
    assert (metrics.val_loss, metrics.val_accuracy) == evaluate(
        trainer.state.evaluated_model, tiny.val, tiny, device=CPU
    )
    assert metrics.val_loss != evaluate(trainer.state.model, tiny.val, tiny, device=CPU).loss


def test_without_moving_average_the_weights_themselves_are_evaluated(tiny: Dataset) -> None:
    trainer = _trainer(tiny)
    assert trainer.state.evaluated_model is trainer.state.model


def test_precision_setting_is_what_the_network_computes_in(tiny: Dataset) -> None:
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        trainer = _trainer(tiny, precision=precision)
        dtypes: list[torch.dtype] = []
        trainer.state.model.head.register_forward_hook(lambda _, __, out, dtypes=dtypes: dtypes.append(out.dtype))
        trainer.run_epoch()
        assert set(dtypes) == {dtype}
        assert trainer.state.plan.precision == precision
        assert {parameter.dtype for parameter in trainer.state.model.parameters()} == {torch.float32}


# Data order


def _epoch_batches(trainer: Trainer, *, epoch: int = 0, rank: int = 0, world_size: int = 1) -> list[list[int]]:
    ranks, seed = Ranks(rank, world_size), trainer.state.config.seed
    return trainer.batches.indices(seed=seed, epoch=epoch + 1, ranks=ranks).tolist()


def test_epoch_covers_distinct_images_in_whole_batches() -> None:
    trainer = _trainer(tiny_dataset(images=53))
    for epoch in range(3):
        batches = _epoch_batches(trainer, epoch=epoch)
        assert [len(batch) for batch in batches] == [16] * 3
        indices = list(chain(*batches))
        assert len(set(indices)) == 48
        assert set(indices) <= set(range(53))


def test_left_over_images_change_between_epochs() -> None:
    trainer = _trainer(tiny_dataset(images=53))
    left = [set(range(53)).difference(*_epoch_batches(trainer, epoch=epoch)) for epoch in range(4)]
    assert len(set.union(*left)) > 5


def test_order_differs_between_epochs_and_seeds_and_repeats_otherwise(tiny: Dataset) -> None:
    orders = [
        tuple(map(tuple, _epoch_batches(_trainer(tiny, seed=seed), epoch=epoch)))
        for seed in range(4)
        for epoch in range(4)
    ]
    assert len(set(orders)) == 16
    assert orders[0] == tuple(map(tuple, _epoch_batches(_trainer(tiny), epoch=0)))


@pytest.mark.parametrize("world_size", [2, 4, 16])
def test_ranks_partition_each_global_batch(world_size: int, tiny: Dataset) -> None:
    trainer = _trainer(tiny)
    whole = _epoch_batches(trainer)
    shares = [_epoch_batches(trainer, rank=rank, world_size=world_size) for rank in range(world_size)]
    for step, batch in enumerate(whole):
        parts = [share[step] for share in shares]
        assert {len(part) for part in parts} == {16 // world_size}
        assert sorted(chain(*parts)) == sorted(batch)


@pytest.mark.parametrize("pixels_at_once", [1, 2 * 16 * 8 * 8 * 3, 1 << 22], ids=["batch", "two batches", "epoch"])
def test_what_is_distorted_together_comes_in_the_batches_of_the_epoch(
    pixels_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lsmha.data.augmentation.PIXELS_AT_ONCE", pixels_at_once)
    dataset = tiny_dataset(images=53)
    # RandAugment leaves an image of one level as it is, at no strength.
    dataset.train.images[:] = torch.arange(53, dtype=torch.uint8).view(-1, 1, 1, 1)
    trainer = _trainer(dataset, augment=AugmentConfig(randaugment_ops=2, randaugment_magnitude=0))
    how = {"seed": trainer.state.config.seed, "epoch": 1, "ranks": trainer.state.ranks}
    found = list(trainer.batches.of_epoch(**how))
    assert len(found) == 3
    for (inputs, targets), batch in zip(found, trainer.batches.indices(**how), strict=True):
        assert torch.equal(inputs, normalize(dataset.train.images[batch], dataset.mean, dataset.std))
        assert torch.equal(targets, dataset.train.labels[batch])


# Refusals


def test_batch_larger_than_the_data_is_refused(tiny: Dataset) -> None:
    with pytest.raises(ValueError, match=r"batch_size .*49 > 48"):
        _trainer(tiny, batch_size=49)


def test_batch_of_all_images_is_one_step(tiny: Dataset) -> None:
    assert _trainer(tiny, batch_size=48).batches.steps_per_epoch == 1


def test_batch_that_workers_cannot_share_is_refused(tiny: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    with pytest.raises(ValueError, match="batch_size must be a multiple of the workers, but got 16 for 3 workers"):
        _trainer(tiny)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("img_size", 16, "img_size must be 8 for data set tiny, but got 16"),
        ("in_channels", 1, "in_channels must be 3 for data set tiny, but got 1"),
        ("num_classes", 4, "num_classes must be 3 for data set tiny, but got 4"),
    ],
)
def test_network_that_does_not_fit_the_images_is_refused(field: str, value: int, message: str, tiny: Dataset) -> None:
    with pytest.raises(ValueError, match=message):
        _trainer(tiny, model={field: value})


# Divergence


def _assert_tells(error: DivergenceError, *, epoch: str, loss: str, learning_rate: str) -> None:
    text = str(error)
    assert f"epoch {epoch}" in text
    assert loss in text
    assert f"learning_rate={learning_rate}" in text
    assert "\n" not in text


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_huge_learning_rate_diverges(optimizer: str, precision: str, tiny: Dataset) -> None:
    recipe = tiny_recipe(epochs=4, learning_rate=1e30, optimizer=optimizer, precision=precision)
    with pytest.raises(DivergenceError) as raised:
        train(tiny_model(), recipe, tiny, device=CPU)
    _assert_tells(raised.value, epoch="1 of 4", loss="train_loss is nan", learning_rate="1e+30")
    assert optimizer in str(raised.value)
    assert precision in str(raised.value)


def test_divergence_in_the_last_step_shows_in_validation(tiny: Dataset) -> None:
    # The only step starts from sound weights: its loss is finite, the weights after it are not.
    trainer = _trainer(tiny, batch_size=48, learning_rate=1e38, optimizer="sgd", weight_decay=1e5)
    with pytest.raises(DivergenceError) as raised:
        trainer.run_epoch()
    _assert_tells(raised.value, epoch="1 of 1", loss="val_loss is nan", learning_rate="1e+38")


def test_not_a_number_among_the_weights_is_divergence_in_the_epoch_it_comes_up(tiny: Dataset) -> None:
    trainer = _trainer(tiny, epochs=3)
    trainer.run_epoch()
    with torch.no_grad():
        trainer.state.model.norm.weight[0] = float("nan")
    with pytest.raises(DivergenceError) as raised:
        trainer.run_epoch()
    _assert_tells(raised.value, epoch="2 of 3", loss="train_loss is nan", learning_rate="0.001")
    assert [metrics.epoch for metrics in trainer.state.history] == [1]
    assert trainer.state.epoch == 1


def test_infinite_loss_is_divergence(tiny: Dataset) -> None:
    # Every image is called the second label with certainty: the sum of the others' losses overflows.
    trainer = _trainer(tiny, batch_size=48)
    with torch.no_grad():
        trainer.state.model.head.bias.copy_(torch.tensor([0.0, 3e38, 0.0]))
    with pytest.raises(DivergenceError) as raised:
        trainer.run_epoch()
    _assert_tells(raised.value, epoch="1 of 1", loss="train_loss is inf", learning_rate="0.001")


# Side effects


def _generator_states() -> tuple[Any, ...]:
    return torch.get_rng_state().tolist(), random.getstate(), repr(np.random.get_state())


@pytest.mark.usefixtures("unchecked")
def test_global_generators_stay_as_they_were(tiny: Dataset, tmp_path: Path) -> None:
    model = {"drop_path": 0.3, "attn_drop": 0.3, "num_conv_blocks": 1}
    before = _generator_states()
    trainer = _trainer(tiny, model=model, epochs=2, ema_decay=0.9, augment=ALL_AUGMENTATION)
    assert _generator_states() == before
    trainer.run_epoch()
    assert _generator_states() == before
    trainer.state.save(tmp_path / "run.pt")
    trainer.state.load(tmp_path / "run.pt")
    assert _generator_states() == before


def test_global_torch_generator_survives_divergence(tiny: Dataset) -> None:
    before = torch.get_rng_state()
    with pytest.raises(DivergenceError):
        train(tiny_model(attn_drop=0.3), tiny_recipe(learning_rate=1e30), tiny, device=CPU)
    assert torch.equal(torch.get_rng_state(), before)


def test_initial_weights_follow_the_seed_alone(tiny: Dataset) -> None:
    states = []
    for global_seed, seed in ((1, 0), (2, 0), (2, 1)):
        torch.manual_seed(global_seed)
        states.append(dict(_trainer(tiny, seed=seed).state.model.state_dict()))
    assert_same_bits(states[0], states[1])
    assert not torch.equal(states[0]["head.weight"], states[2]["head.weight"])


def test_training_images_are_not_changed() -> None:
    dataset = tiny_dataset()
    trainer = _trainer(dataset, augment=ALL_AUGMENTATION)
    trainer.run_epoch()
    pristine = tiny_dataset()
    for split in ("train", "val", "test"):
        assert torch.equal(getattr(dataset, split).images, getattr(pristine, split).images)
        assert torch.equal(getattr(dataset, split).labels, getattr(pristine, split).labels)


def test_evaluation_leaves_weights_and_statistics_alone(tiny: Dataset) -> None:
    trainer = _trainer(tiny, model={"num_conv_blocks": 2, "drop_path": 0.5, "conv_kind": "residual"})
    before = {name: value.clone() for name, value in trainer.state.model.state_dict().items()}
    first = evaluate(trainer.state.model, tiny.val, tiny, device=CPU)
    assert first == evaluate(trainer.state.model, tiny.val, tiny, device=CPU)
    assert_same_bits(before, dict(trainer.state.model.state_dict()))
