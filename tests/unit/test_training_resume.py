"""A run that stops after any epoch and goes on from its checkpoint is the run that never stopped, bit by bit."""

from __future__ import annotations

import pickle
import random
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_data import ALL_AUGMENTATION, assert_same_bits, tiny_model, tiny_recipe, without_timings

from lsmha.config import AugmentConfig, ModelConfig, TrainConfig
from lsmha.data import Dataset
from lsmha.training import EpochMetrics, Trainer, train

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
TRANSFORMER: dict[str, Any] = {"drop_path": 0.3, "attn_drop": 0.3}
HYBRID: dict[str, Any] = {**TRANSFORMER, "depth": 3, "num_conv_blocks": 2, "conv_kind": "residual"}


class Interrupted(Exception):
    pass


def _train_with_interruptions(
    model_config: ModelConfig, train_config: TrainConfig, dataset: Dataset, checkpoint: Path
) -> tuple[Trainer, int]:
    """Train, stopping after each epoch but the last and going on from its checkpoint; the number of interruptions."""

    def save_and_stop(trainer: Trainer, metrics: EpochMetrics) -> None:
        trainer.save(checkpoint)
        if metrics.epoch < train_config.epochs:
            raise Interrupted

    interruptions = 0
    while True:
        # Whatever used the global generators in between does not matter.
        random.seed(interruptions)
        np.random.seed(interruptions)
        torch.manual_seed(interruptions)
        try:
            trainer = train(
                model_config,
                train_config,
                dataset,
                device=CPU,
                on_epoch_end=save_and_stop,
                resume_from=checkpoint if checkpoint.exists() else None,
            )
        except Interrupted:
            interruptions += 1
        else:
            return trainer, interruptions


def _assert_same_run(trainer: Trainer, other: Trainer, folder: Path) -> None:
    states = []
    for index, run in enumerate((trainer, other)):
        run.save(folder / f"{index}.pt")
        states.append(torch.load(folder / f"{index}.pt", weights_only=True))
    assert without_timings(trainer.history) == without_timings(other.history)
    for state in states:
        del state["history"]
    assert_same_bits(*states)
    assert_same_bits(trainer.evaluated_model.state_dict(), other.evaluated_model.state_dict())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("ema_decay", [None, 0.9])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("network", [TRANSFORMER, HYBRID], ids=["transformer", "hybrid"])
def test_interrupted_run_equals_uninterrupted_one(
    network: dict[str, Any], optimizer: str, ema_decay: float | None, precision: str, tiny: Dataset, tmp_path: Path
) -> None:
    model_config = tiny_model(**network)
    recipe = tiny_recipe(
        epochs=3,
        warmup_epochs=1.5,
        learning_rate=0.01,
        label_smoothing=0.1,
        grad_clip_norm=1.0,
        optimizer=optimizer,
        ema_decay=ema_decay,
        precision=precision,
        augment=ALL_AUGMENTATION,
    )
    whole = train(model_config, recipe, tiny, device=CPU)
    resumed, interruptions = _train_with_interruptions(model_config, recipe, tiny, tmp_path / "run.pt")
    assert interruptions == 2
    assert [metrics.epoch for metrics in resumed.history] == [1, 2, 3]
    _assert_same_run(whole, resumed, tmp_path)


def test_randomness_is_at_work_in_what_is_compared(tiny: Dataset) -> None:
    # Were dropout, augmentation or their seeds idle, resuming bitwise would prove nothing.
    recipe = tiny_recipe(augment=ALL_AUGMENTATION)
    losses = {
        train(model, settings, tiny, device=CPU).history[0].train_loss
        for model in (tiny_model(), tiny_model(drop_path=0.3), tiny_model(attn_drop=0.3))
        for settings in (recipe, tiny_recipe(), recipe.model_copy(update={"seed": 1}))
    }
    assert len(losses) == 9


@pytest.mark.parametrize(
    "settings", [{"model": TRANSFORMER}, {"augment": ALL_AUGMENTATION}], ids=["dropout", "augment"]
)
def test_each_epoch_and_each_rank_draws_anew(settings: dict[str, Any], tiny: Dataset) -> None:
    # The same weights on the same batches, in two epochs and as two ranks: what differs is what was drawn.
    losses = []
    for rank in (0, 1):
        recipe = tiny_recipe(epochs=2, learning_rate=1e-30, augment=settings.get("augment", AugmentConfig()))
        trainer = Trainer(tiny_model(**settings.get("model", {})), recipe, tiny, device=CPU)
        trainer.rank = rank
        trainer._batches = lambda: iter(torch.arange(48).split(16))  # type: ignore[method-assign]
        losses += [trainer.run_epoch().train_loss, trainer.run_epoch().train_loss]
        assert trainer.history[0].val_loss == trainer.history[1].val_loss
    assert len(set(losses)) == 4


def test_finished_run_resumes_to_itself(tiny: Dataset, tmp_path: Path) -> None:
    recipe = tiny_recipe(epochs=2)
    whole = train(tiny_model(), recipe, tiny, device=CPU)
    whole.save(tmp_path / "run.pt")

    def no_more_epochs(trainer: Trainer, metrics: EpochMetrics) -> None:
        raise AssertionError(f"epoch {metrics.epoch} was trained again")

    again = train(tiny_model(), recipe, tiny, device=CPU, on_epoch_end=no_more_epochs, resume_from=tmp_path / "run.pt")
    assert again.history == whole.history
    _assert_same_run(whole, again, tmp_path)


def test_saving_is_repeatable_and_leaves_the_run_alone(tiny: Dataset, tmp_path: Path) -> None:
    recipe = tiny_recipe(epochs=2, ema_decay=0.9)
    silent = train(tiny_model(), recipe, tiny, device=CPU)
    saving = train(
        tiny_model(), recipe, tiny, device=CPU, on_epoch_end=lambda trainer, _: trainer.save(tmp_path / "deep" / "x.pt")
    )
    _assert_same_run(silent, saving, tmp_path)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["x.pt"]


@pytest.mark.parametrize(
    ("model_settings", "recipe_settings"),
    [
        ({}, {"seed": 1}),
        ({}, {"learning_rate": 0.5}),
        ({}, {"epochs": 3}),
        ({}, {"optimizer": "sgd"}),
        ({}, {"ema_decay": 0.9}),
        ({}, {"augment": ALL_AUGMENTATION}),
        ({"num_heads": 4}, {}),  # the same shapes: weights alone would not tell
        ({"embed_dim": 16}, {}),
        ({"drop_path": 0.1}, {}),
    ],
    ids=str,
)
def test_checkpoint_of_another_run_is_refused(
    model_settings: dict[str, Any], recipe_settings: dict[str, Any], tiny: Dataset, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "other.pt"
    Trainer(tiny_model(), tiny_recipe(epochs=2), tiny, device=CPU).save(checkpoint)
    settings = {"epochs": 2, **recipe_settings}
    trainer = Trainer(tiny_model(**model_settings), tiny_recipe(**settings), tiny, device=CPU)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    with pytest.raises(ValueError, match="other run") as raised:
        trainer.load(checkpoint)
    assert str(checkpoint) in str(raised.value)
    assert_same_bits(before, dict(trainer.model.state_dict()))
    with pytest.raises(ValueError, match="other run"):
        train(tiny_model(**model_settings), tiny_recipe(**settings), tiny, device=CPU, resume_from=checkpoint)


class Payload:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("container", ["zip", "plain pickle"])
def test_checkpoint_cannot_run_code(container: str, tiny: Dataset, tmp_path: Path) -> None:
    trainer = Trainer(tiny_model(), tiny_recipe(), tiny, device=CPU)
    trainer.save(tmp_path / "good.pt")
    state = torch.load(tmp_path / "good.pt", weights_only=True)
    evil, proof = tmp_path / "evil.pt", tmp_path / "executed"
    state["model"] = Payload(proof)
    if container == "zip":
        torch.save(state, evil)
        assert zipfile.is_zipfile(evil)
    else:
        evil.write_bytes(pickle.dumps({"recipe": "", "model": Payload(proof)}, protocol=2))
    with pytest.raises(pickle.UnpicklingError):
        trainer.load(evil)
    assert not proof.exists()
    # The payload is live: an unguarded load runs it.
    torch.load(evil, weights_only=False) if container == "zip" else pickle.loads(evil.read_bytes())
    assert proof.exists()


@pytest.mark.parametrize("kept", [0, 100, 2000])
def test_damaged_checkpoint_is_not_taken_for_a_run(kept: int, tiny: Dataset, tmp_path: Path) -> None:
    trainer = Trainer(tiny_model(), tiny_recipe(), tiny, device=CPU)
    checkpoint = tmp_path / "cut.pt"
    trainer.save(checkpoint)
    checkpoint.write_bytes(checkpoint.read_bytes()[:kept])
    with pytest.raises((EOFError, RuntimeError, pickle.UnpicklingError)):
        trainer.load(checkpoint)
    assert (trainer.epoch, trainer.history) == (0, [])
