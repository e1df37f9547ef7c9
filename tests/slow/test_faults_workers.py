"""Training processes that die, and trials whose metrics are none."""

from __future__ import annotations

import os
import random
import re
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from faults import Fault, Kill, Phase
from running_sweep import (
    Reference,
    Sweep,
    assert_nothing_lost,
    assert_study_holds,
    own_processes,
    records,
    table,
)

from lsmha.training.checkpoints import load_state


@pytest.mark.parametrize(
    ("file", "phase", "count"),
    [
        (r"/t\d+\.pt$", "half written", 2),
        (r"/t\d+\.previous\.pt$", "after the rename", 1),
        (r"/t\d+\.pt$", "after the rename", 8),
    ],
    ids=["within a checkpoint", "between its two renames", "after the last one"],
)
def test_a_worker_killed_while_it_saves(
    file: str, phase: Phase, count: int, sweep: Callable[..., Sweep], reference: Reference, tmp_path: Path
) -> None:
    struck = tmp_path / "struck"
    survivor = sweep()
    ended = survivor.do(fault=Fault(Kill(file, phase, count, writer_only=True, once=struck)))
    assert struck.exists()
    assert ended.code == 0, ended
    assert_nothing_lost(survivor.run, reference.run)


def test_a_worker_killed_from_outside(sweep: Callable[..., Sweep], reference: Reference) -> None:
    survivor = sweep()
    session = survivor.start()
    session.wait_until(lambda: list((survivor.run / "checkpoints").glob("t*.pt")))
    for process in own_processes("ray::TrainingTrial"):
        os.kill(process, signal.SIGKILL)
    ended = session.wait()
    assert ended.code == 0, ended
    assert_nothing_lost(survivor.run, reference.run)


def test_twenty_kills_of_workers_at_random_moments(sweep: Callable[..., Sweep], reference: Reference) -> None:
    moments = random.Random(5)
    struck = sweep()
    session = struck.start()
    kills = 0
    while kills < 20 and session.process.is_alive():
        time.sleep(moments.uniform(0, 3))
        workers = own_processes("ray::TrainingTrial.train:")
        if workers:
            with suppress(ProcessLookupError):
                os.kill(moments.choice(workers), signal.SIGKILL)
                kills += 1
    ended = session.wait()
    assert ended.code in (0, 1), ended
    undisturbed = records(reference.run, "trials")
    found = struck.records()
    assert list(found) == list(undisturbed)
    for name, record in found.items():
        content, expected = record.content, undisturbed[name].content
        if content["status"] == "completed":
            if content["point"] == expected["point"]:  # the sampler learns from those that completed
                assert content["val_loss"] == expected["val_loss"]
        else:
            assert re.search(r"\(tried 3 times\)", content["error"])
            assert content["failure"] == "worker"
    assert_study_holds(struck.run)


def test_a_killed_rank_controller_or_leader_costs_no_epoch(sweep: Callable[..., Sweep]) -> None:
    epochs = 60
    ranks = sweep(
        train={"epochs": epochs, "batch_size": 20, "precision": "fp32"},
        search={"sampler": "grid", "num_trials": 3, "suggestion_batch": 3},
        space={"depth": [1, 2, 3]},
        resources={"workers_per_trial": 2, "cpus_per_trial": 2},
    )
    session = ranks.start()
    # The leader of the ranks, before it has told anything of them; what they hold is in nobody's way then.
    session.wait_until(lambda: own_processes("TrainController"))
    (leader,) = own_processes("ray::TrainingTrial")
    os.kill(leader, signal.SIGKILL)
    before: dict[str, list[dict[str, float]]] = {}
    for title in ("RayTrainWorker", "TrainController", "ray::TrainingTrial"):

        def checkpoint_of_another() -> list[Path]:
            """Of the trial under way, if it was not struck yet."""
            return [path for path in (ranks.run / "checkpoints").glob("t????.pt") if path.stem not in before]

        (checkpoint,) = session.wait_until(checkpoint_of_another)
        *_, process = session.wait_until(lambda title=title: own_processes(title))
        os.kill(process, signal.SIGKILL)
        state, _ = load_state(checkpoint, map_location="cpu")
        before[checkpoint.stem] = state["history"]
        assert 1 <= len(state["history"]) < epochs
    ended = session.wait()
    assert ended.code == 0, ended
    found = ranks.records()
    assert list(found) == ["t0000", "t0001", "t0002"]
    for trial, history in before.items():
        content = found[trial].content
        assert content["status"] == "completed"
        assert [epoch["epoch"] for epoch in content["curve"]] == list(range(1, epochs + 1))
        # The wall times of the first epochs are those from before: they were not trained again.
        assert content["curve"][: len(history)] == history
    assert len(table(ranks.run, "curves")) == 3 * epochs
    assert_study_holds(ranks.run)


def test_a_trial_without_a_result_fails_alone(sweep: Callable[..., Sweep]) -> None:
    reasons = {
        "nan": r"val_accuracy must be a finite number, but got nan",
        "inf": r"val_accuracy must be a finite number, but got inf",
        "string": r"val_accuracy must be a finite number, but got 'a string'",
        "missing": r"val_accuracy must be a finite number, but got None",
        "exception": r"nothing ever goes well \(tried 3 times\)",
        "kill": r"(?i)worker.*died.* \(tried 3 times\)",
    }
    spoilt = {f"t{number:04d}": kind for number, kind in enumerate(reasons, 1)}
    partial = sweep()
    ended = partial.do(fault=Fault(spoilt=spoilt))
    assert ended.code == 0, ended
    assert "Traceback" not in ended.output + ended.errors
    found = {name: record.content for name, record in partial.records().items()}
    assert list(found) == [f"t{number:04d}" for number in range(8)]
    status = partial.complete("status", partial.run)
    for name, content in found.items():
        kind = spoilt.get(name)
        assert content["status"] == ("failed" if kind else "completed"), content["error"]
        if kind is not None:
            assert re.search(reasons[kind], content["error"]), (kind, content["error"])
            assert "\n" not in content["error"]
            assert f"{name} failed: {content['error']}" in status
            assert content["failure"] == {"exception": "unexpected", "kill": "worker"}.get(kind, "metrics")
    (fault,) = (partial.run / "tracebacks").iterdir()
    assert fault.stem == next(name for name, kind in spoilt.items() if kind == "exception")
    assert "train_jobs_and_spoil" in fault.read_text()
    assert f"{fault.stem} failed by an error that lsmha-sweep did not foresee" in ended.output
    assert {row["id"] for row in table(partial.run, "front")} <= found.keys() - spoilt.keys()
    assert_study_holds(partial.run)

    files = {name: partial.file_of(name).read_bytes() for name in found}
    partial.complete(*partial.again("resume"))
    assert {name: partial.file_of(name).read_bytes() for name in found} == files
