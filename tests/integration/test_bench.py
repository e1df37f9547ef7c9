"""Loops in processes of their own, measured by turns, as `lsmha-sweep bench` does."""

from __future__ import annotations

from pathlib import Path

import pytest

from lsmha.bench.subject import Subject, started
from lsmha.bench.training_step import (
    COMPARISONS,
    COMPARISONS_WITH_TIMM,
    compare_training,
    tables,
)
from lsmha.config import ModelConfig, TrainConfig
from lsmha.errors import SubjectError

TINY = ModelConfig(img_size=8, num_classes=3, embed_dim=16, depth=1, num_heads=4)


def test_training_is_compared_in_turns() -> None:
    told: list[str] = []
    speeds, speedups = compare_training(
        ["cct_2_3x2_32"], batch_size=2, repeats=2, device="cpu", run_s=0.01, with_timm=True, on_repeat=told.append
    )
    assert len({speed.num_params for speed in speeds}) == 1
    assert all(speed.images_per_s.n == 2 and speed.images_per_s.low > 0 for speed in speeds)
    assert all(speed.peak_memory_mib > 50 for speed in speeds)
    assert {speed.candidate: speed.attn_drop for speed in speeds} == {
        "vit-pytorch": 0.1,
        "vit-pytorch, bf16 autocast": 0.1,
        "vit-pytorch, no attention dropout": 0.0,
        "lsmha, attention dropout": 0.1,
        "lsmha": 0.0,
        "timm's loop and loader, bf16": 0.1,
        "timm's loop, images in memory, bf16": 0.1,
    }
    assert [speedup.what for speedup in speedups] == [what for what, _, _ in COMPARISONS + COMPARISONS_WITH_TIMM]
    assert "repeat 2 of 2" in told[-1]
    ratios, absolute = tables(speeds, speedups)
    assert len(ratios.rows) == len(speedups)
    assert len(absolute.rows) == len(speeds)


def test_a_subject_has_its_own_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TOP_PAD_", "1")
    for tuned, expected in ((True, str(1 << 26)), (False, None)):
        subject = Subject("lsmha", TINY, TrainConfig(batch_size=2), "cpu", tuned=tuned)
        with started(subject, run_s=0.001) as process:
            environment = Path(f"/proc/{process.process.pid}/environ").read_bytes().split(b"\0")
            found = {line.partition(b"=")[0]: line.partition(b"=")[2].decode() for line in environment}
            assert found.get(b"MALLOC_TOP_PAD_") == expected
            assert process.images_per_s() > 0


def test_a_subject_that_cannot_train_says_why() -> None:
    hybrid = TINY.model_copy(update={"num_conv_blocks": 1})
    subject = Subject("vit-pytorch", hybrid, TrainConfig(batch_size=2), "cpu", tuned=False)
    with pytest.raises(SubjectError, match="num_conv_blocks must be 0"), started(subject, run_s=0.001):
        pass
