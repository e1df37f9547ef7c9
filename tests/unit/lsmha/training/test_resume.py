"""A run that stops after any epoch and goes on from its checkpoint is the run that never stopped, bit by bit."""

from __future__ import annotations

import io
import pickle
import random
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_data import ALL_AUGMENTATION, assert_same_bits, tiny_model, tiny_recipe, without_timings

from lsmha.config import AugmentConfig, ModelConfig, TrainConfig
from lsmha.data import Dataset
from lsmha.errors import DamagedFileError
from lsmha.io.checksums import CHECKSUM_PLACEHOLDER, write_checked
from lsmha.training import EpochMetrics, Trainer, TrainState, train
from lsmha.training.checkpoints import checkpoint_files, load_state, save_state
from lsmha.training.ranks import Ranks

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
TRANSFORMER: dict[str, Any] = {"drop_path": 0.3, "attn_drop": 0.3}
HYBRID: dict[str, Any] = {**TRANSFORMER, "depth": 3, "num_conv_blocks": 2, "conv_kind": "residual"}


class Interrupted(Exception):
    pass


def _train_with_interruptions(
    model_config: ModelConfig, train_config: TrainConfig, dataset: Dataset, checkpoint: Path
) -> tuple[TrainState, int]:
    """Train, stopping after each epoch but the last and going on from its checkpoint; the number of interruptions."""

    def save_and_stop(state: TrainState, metrics: EpochMetrics) -> None:
        state.save(checkpoint)
        if metrics.epoch < train_config.epochs:
            raise Interrupted

    interruptions = 0
    while True:
        # Whatever used the global generators in between does not matter.
        random.seed(interruptions)
        np.random.seed(interruptions)
        torch.manual_seed(interruptions)
        try:
            trained = train(
                model_config,
                train_config,
                dataset,
                device=CPU,
                on_epoch_end=save_and_stop,
                resume_from=checkpoint,
            )
        except Interrupted:
            interruptions += 1
        else:
            return trained, interruptions


def _assert_same_run(trained: TrainState, other: TrainState, folder: Path) -> None:
    states = []
    for index, run in enumerate((trained, other)):
        run.save(folder / f"{index}.pt")
        states.append(load_state(folder / f"{index}.pt", map_location=CPU).state)
    assert without_timings(trained.history) == without_timings(other.history)
    for state in states:
        del state["history"]
    assert_same_bits(*states)
    assert_same_bits(trained.evaluated_model.state_dict(), other.evaluated_model.state_dict())


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
        trainer.state.ranks = Ranks(rank)
        trainer.batches.indices = lambda **_: torch.arange(48).view(3, 16)  # type: ignore[method-assign]
        losses += [trainer.run_epoch().train_loss, trainer.run_epoch().train_loss]
        assert trainer.state.history[0].val_loss == trainer.state.history[1].val_loss
    assert len(set(losses)) == 4


def test_finished_run_resumes_to_itself(tiny: Dataset, tmp_path: Path) -> None:
    recipe = tiny_recipe(epochs=2)
    whole = train(tiny_model(), recipe, tiny, device=CPU)
    whole.save(tmp_path / "run.pt")

    def no_more_epochs(state: TrainState, metrics: EpochMetrics) -> None:
        raise AssertionError(f"epoch {metrics.epoch} was trained again")

    again = train(tiny_model(), recipe, tiny, device=CPU, on_epoch_end=no_more_epochs, resume_from=tmp_path / "run.pt")
    assert again.history == whole.history
    _assert_same_run(whole, again, tmp_path)


def test_saving_is_repeatable_and_leaves_the_run_alone(tiny: Dataset, tmp_path: Path) -> None:
    recipe = tiny_recipe(epochs=2, ema_decay=0.9)
    silent = train(tiny_model(), recipe, tiny, device=CPU)
    folder = tmp_path / "saved"
    folder.mkdir()
    saving = train(tiny_model(), recipe, tiny, device=CPU, on_epoch_end=lambda state, _: state.save(folder / "x.pt"))
    _assert_same_run(silent, saving, tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == ["x.previous.pt", "x.pt"]


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
    TrainState(tiny_model(), tiny_recipe(epochs=2), tiny, device=CPU).save(checkpoint)
    settings = {"epochs": 2, **recipe_settings}
    state = TrainState(tiny_model(**model_settings), tiny_recipe(**settings), tiny, device=CPU)
    before = {name: value.clone() for name, value in state.model.state_dict().items()}
    with pytest.raises(ValueError, match="other run") as raised:
        state.load(checkpoint)
    assert str(checkpoint) in str(raised.value)
    assert_same_bits(before, dict(state.model.state_dict()))
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
    run = TrainState(tiny_model(), tiny_recipe(), tiny, device=CPU)
    run.save(tmp_path / "good.pt")
    state = load_state(tmp_path / "good.pt", map_location=CPU).state
    evil, proof = tmp_path / "evil.pt", tmp_path / "executed"
    state["model"] = Payload(proof)
    if container == "zip":
        save_state(state, evil)
        assert zipfile.is_zipfile(evil)
    else:
        pickled = pickle.dumps({"recipe": "", "model": Payload(proof)}, protocol=2)
        write_checked(evil, f"{CHECKSUM_PLACEHOLDER}\n".encode() + pickled)
    with pytest.raises(pickle.UnpicklingError):
        run.load(evil)
    assert not proof.exists()
    # The payload is live: an unguarded load runs it.
    content = io.BytesIO(evil.read_bytes().partition(b"\n")[2])
    torch.load(content, weights_only=False) if container == "zip" else pickle.load(content)
    assert proof.exists()


@pytest.mark.parametrize("kept", [0, 100, 2000])
def test_damaged_checkpoint_is_not_taken_for_a_run(kept: int, tiny: Dataset, tmp_path: Path) -> None:
    state = TrainState(tiny_model(), tiny_recipe(), tiny, device=CPU)
    checkpoint = tmp_path / "cut.pt"
    state.save(checkpoint)
    checkpoint.write_bytes(checkpoint.read_bytes()[:kept])
    with pytest.raises(DamagedFileError, match=re.escape(str(checkpoint))):
        state.load(checkpoint)
    assert (state.epoch, state.history) == (0, [])


def _save_each_epoch(checkpoint: Path, epochs: int, dataset: Dataset) -> TrainState:
    return train(
        tiny_model(),
        tiny_recipe(epochs=epochs),
        dataset,
        device=CPU,
        on_epoch_end=lambda state, _: state.save(checkpoint),
    )


@pytest.mark.parametrize("lost", ["nothing", "newest", "newest damaged", "both damaged", "both"])
def test_run_goes_on_from_the_newest_good_state_and_says_what_is_damaged(
    lost: str, tiny: Dataset, tmp_path: Path
) -> None:
    checkpoint, previous = checkpoint_files(tmp_path / "run.pt")
    whole = _save_each_epoch(checkpoint, 3, tiny)
    files = {"nothing": [], "both damaged": [checkpoint, previous], "both": [checkpoint, previous]}.get(
        lost, [checkpoint]
    )
    for file in files:
        if "damaged" in lost:
            file.write_bytes(file.read_bytes()[:-1])
        else:
            file.unlink()
    epochs: list[int] = []
    lines: list[str] = []
    resumed = train(
        tiny_model(),
        tiny_recipe(epochs=3),
        tiny,
        device=CPU,
        on_epoch_end=lambda _, metrics: epochs.append(metrics.epoch),
        resume_from=checkpoint,
        on_damage=lines.append,
    )
    trained_again = {"nothing": 0, "newest": 1, "newest damaged": 1}.get(lost, 3)
    assert epochs == [1, 2, 3][3 - trained_again :]
    assert len(lines) == ("damaged" in lost)
    for line in lines:
        assert all(str(file) in line for file in files)
        assert ("starts over" in line) == (lost == "both damaged")
        assert "\n" not in line
    _assert_same_run(whole, resumed, tmp_path)


def test_damage_is_a_warning_where_nobody_asks_for_it(tiny: Dataset, tmp_path: Path) -> None:
    _save_each_epoch(tmp_path / "run.pt", 2, tiny)
    (tmp_path / "run.pt").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"run\.pt is damaged; training goes on .* after epoch 1"):
        train(tiny_model(), tiny_recipe(epochs=2), tiny, device=CPU, resume_from=tmp_path / "run.pt")
