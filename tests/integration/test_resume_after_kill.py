"""A training process that is killed goes on from its checkpoint as though nothing had happened."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_data import (
    ALL_AUGMENTATION,
    assert_same_bits,
    tiny_dataset,
    tiny_model,
    tiny_recipe,
    without_timings,
)

from lsmha.training import EpochMetrics, TrainState, train
from lsmha.training.checkpoints import load_state

CPU = torch.device("cpu")
MODEL = tiny_model(depth=3, num_conv_blocks=1, conv_kind="residual", drop_path=0.3, attn_drop=0.3)
RECIPE = tiny_recipe(
    epochs=4, warmup_epochs=1.0, learning_rate=0.01, ema_decay=0.9, grad_clip_norm=1.0, augment=ALL_AUGMENTATION
)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


_replace = os.replace


def _kill_this_process() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _write_half_and_die(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content[: len(content) // 2])
    _kill_this_process()


def _rename_and_die(source: Path, target: Path) -> None:
    _replace(source, target)
    _kill_this_process()


def _train_until_killed(checkpoint: Path, moment: str) -> None:
    """Child process: trains, saving after each epoch, and dies at that moment with one more epoch on disk."""
    torch.set_num_threads(1)

    def on_epoch_end(state: TrainState, metrics: EpochMetrics) -> None:
        if moment == "while saving" and metrics.epoch == 2:
            Path.write_bytes = _write_half_and_die
        if moment == "between the two renames" and metrics.epoch == 2:
            os.replace = _rename_and_die
        state.save(checkpoint)
        if moment == "after saving":
            _kill_this_process()
        if moment == "between two steps":
            state.optimizer.register_step_post_hook(lambda *_: _kill_this_process())

    train(
        MODEL,
        RECIPE,
        tiny_dataset(),
        device=CPU,
        on_epoch_end=on_epoch_end,
        resume_from=checkpoint,
    )


def _saved_epoch(checkpoint: Path) -> int:
    state, damaged = load_state(checkpoint, map_location=CPU)
    assert damaged == []
    return state["epoch"]


def _run_and_expect_kill(checkpoint: Path, moment: str) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_train_until_killed, args=(checkpoint, moment))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize("moment", ["after saving", "while saving", "between the two renames", "between two steps"])
def test_run_resumed_after_a_kill_equals_the_uninterrupted_one(moment: str, tmp_path: Path) -> None:
    checkpoint = tmp_path / "run.pt"
    _run_and_expect_kill(checkpoint, moment)
    assert checkpoint.exists() == (moment != "between the two renames")
    assert _saved_epoch(checkpoint) == 1
    resumed = train(MODEL, RECIPE, tiny_dataset(), device=CPU, resume_from=checkpoint)
    whole = train(MODEL, RECIPE, tiny_dataset(), device=CPU)
    assert without_timings(resumed.history) == without_timings(whole.history)
    assert_same_bits(dict(resumed.model.state_dict()), dict(whole.model.state_dict()))
    assert_same_bits(dict(resumed.evaluated_model.state_dict()), dict(whole.evaluated_model.state_dict()))
    assert_same_bits(resumed.optimizer.state_dict(), whole.optimizer.state_dict())


def test_each_process_gets_one_epoch_further(tmp_path: Path) -> None:
    checkpoint = tmp_path / "run.pt"
    for epochs in (1, 2):
        _run_and_expect_kill(checkpoint, "after saving")
        assert _saved_epoch(checkpoint) == epochs
