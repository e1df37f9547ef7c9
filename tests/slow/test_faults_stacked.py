"""Seeds that are trained together, of which some were saved or recorded at the moment of a fault and others not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from faults import Fault, Kill
from running_sweep import Sweep

SEEDS_TOGETHER = {
    "model": {"embed_dim": 16, "mlp_ratio": 1.0, "attention": "materialized", "attn_drop": 0.0, "drop_path": 0.0},
    "search": {"sampler": "grid", "num_trials": 1, "suggestion_batch": 1},
    "space": {"depth": [1]},
    "finalists": {
        "max_finalists": 1, "seeds": [0, 1, 2], "resources": {"max_concurrent_trials": 1, "max_stacked_seeds": 3},
    },
}  # fmt: skip


@pytest.fixture
def stack(sweep: Callable[..., Sweep]) -> Sweep:
    return sweep(**SEEDS_TOGETHER)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, address: str) -> dict[str, float]:
    """Test losses of the runs undisturbed."""
    undisturbed = Sweep(tmp_path_factory.mktemp("undisturbed"), address, **SEEDS_TOGETHER)
    undisturbed.complete()
    return losses(undisturbed)


def losses(sweep: Sweep) -> dict[str, float]:
    found = sweep.records("finalists")
    assert list(found) == ["t0000-s0", "t0000-s1", "t0000-s2"]
    assert {record.content["status"] for record in found.values()} == {"completed"}
    return {name: record.content["test_loss"] for name, record in found.items()}


@pytest.mark.parametrize("count", [2, 5], ids=["in the first epoch", "later"])
def test_a_worker_killed_between_the_checkpoints_of_two_seeds(
    count: int, stack: Sweep, expected: dict[str, float], tmp_path: Path
) -> None:
    struck = tmp_path / "struck"
    ended = stack.do(fault=Fault(Kill(r"/t0000-s\d\.pt$", "after the rename", count, writer_only=True, once=struck)))
    assert struck.exists()
    assert ended.code == 0, ended
    assert losses(stack) == pytest.approx(expected, abs=1e-5)


def test_a_driver_killed_between_the_records_of_two_seeds(stack: Sweep, expected: dict[str, float]) -> None:
    killed = stack.do(fault=Fault(Kill(r"/finalists/t0000-s\d-.*\.json$", "after the rename", 2)))
    assert killed.code < 0, killed
    assert len(stack.records("finalists")) == 2
    stack.complete(*stack.again("resume"))
    assert losses(stack) == pytest.approx(expected, abs=1e-5)
