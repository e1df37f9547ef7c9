"""Who may go on with a run, and with which settings."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest
from running_sweep import Reference, Sweep, assert_nothing_lost, assert_refused, snapshot, write_spec


def test_a_run_has_one_owner_at_a_time(sweep: Callable[..., Sweep], reference: Reference) -> None:
    owned = sweep()
    first = owned.start()
    first.wait_until(lambda: owned.records())
    os.kill(first.process.pid, signal.SIGSTOP)  # alive, and it holds still
    before = _without_checkpoints(owned)
    who = f"in use by process {first.process.pid} on {os.uname().nodename}"
    for command in (owned.again("run"), owned.again("resume"), ["repair", owned.run]):
        log = owned.do(*command)
        assert_refused(log, 2, who)
    assert _without_checkpoints(owned) == before
    os.kill(first.process.pid, signal.SIGCONT)
    first.process.join(60)
    assert first.process.exitcode == 0
    assert_nothing_lost(owned.run, reference.run)


def test_a_killed_owner_leaves_the_run_to_the_next(sweep: Callable[..., Sweep], reference: Reference) -> None:
    owned = sweep()
    first = owned.start()
    first.wait_until(lambda: owned.records())
    first.process.kill()
    first.process.join()
    owned.complete(*owned.again("resume"))
    assert_nothing_lost(owned.run, reference.run)


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"seed": 1}, ["seed: must be 0, as in the run, but got 1"]),
        ({"train": {"epochs": 9}}, ["train.epochs: must be 8, as in the run, but got 9"]),
        ({"space": {"depth": [1, 2, 3]}}, ["space.", "as in the run"]),
        ({"search": {"num_trials": 7, "suggestion_batch": 4}}, ["search.num_trials: must be at least 8", "but got 7"]),
    ],
)
def test_a_changed_spec_is_refused(
    sections: dict[str, object], words: list[str], sweep: Callable[..., Sweep], reference: Reference
) -> None:
    changed = sweep()
    changed.copy_of(reference.run)
    before = snapshot(changed.run)
    write_spec(changed.spec, **sections)
    assert_refused(changed.do(), 2, *words)
    assert snapshot(changed.run) == before


def test_a_run_that_grows_keeps_what_it_has(sweep: Callable[..., Sweep], reference: Reference) -> None:
    grown = sweep()
    grown.copy_of(reference.run)
    before = snapshot(grown.run / "records")
    said = grown.complete(
        *grown.again("resume"), "--set", "search.num_trials=10", "--set", "finalists.max_finalists=1",
        "--set", "finalists.seeds=[0, 1]",
    )  # fmt: skip
    ended = [line.split()[1] for line in said.splitlines() if line.startswith("[")]
    assert sorted(ended[:2]) == ["t0008", "t0009"], "at the same time, so either may end first"
    after = snapshot(grown.run / "records")
    assert {path: after.get(path) for path in before} == before
    assert list(grown.records()) == [f"t{number:04d}" for number in range(10)]
    assert len(grown.records("finalists")) == 2


def _without_checkpoints(sweep: Sweep) -> dict[object, bytes | None]:
    # A worker may be in the middle of an epoch; the first owner's word is held back with it.
    return {path: content for path, content in snapshot(sweep.run).items() if "checkpoints" not in path.parts}
