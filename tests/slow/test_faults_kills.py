"""SIGKILL of a sweep's driver at random moments, and in the middle of every kind of file that it or a worker writes."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable
from typing import get_args

from faults import Fault, Kill, Phase
from running_sweep import WITH_FINALISTS, Reference, Sweep, assert_nothing_lost

from orchestrator.run_folder.ledger import remove_abandoned

SEARCH_FILES = {
    "settings": r"/run/config\.yaml$",
    "owner": r"/owner\.json$",
    "stage": r"/status\.json$",
    "fingerprint": r"/records/fingerprint/",
    "latency": r"/records/latency/",
    "batch": r"/records/batches/",
    "checkpoint": r"/checkpoints/t\d+\.pt$",
    "previous checkpoint": r"/checkpoints/t\d+\.previous\.pt$",
    "trial": r"/records/trials/",
    "trials": r"/trials\.parquet$",
    "curves": r"/curves\.parquet$",
    "latencies": r"/latency\.parquet$",
    "front": r"/front\.parquet$",
    "study": r"/study\.journal$",
    "plot": r"/front\.png$",
    "summary": r"/summary\.json$",
}
"""Every kind of file of the search, in the order in which a run writes them."""

FINALIST_FILES = {
    "checkpoint": r"/checkpoints/t\d+-s0\.pt$",
    "weights": r"/model\.safetensors$",
    "architecture": r"/config\.json$",
    "val logits": r"/val_logits\.safetensors$",
    "test logits": r"/test_logits\.safetensors$",
    "finalist": r"/records/finalists/",
    "fields": r"/fields\.safetensors$",
    "heads": r"/analysis/.*\.parquet$",
    "analysis": r"/records/analyses/",
    "committees": r"/records/committees/",
    "finalists": r"/finalists\.parquet$",
    "analyses": r"/analysis\.parquet$",
    "committee table": r"/committees\.parquet$",
}
"""And of what follows it."""


def test_a_sweep_killed_five_times_is_the_sweep_that_was_not(sweep: Callable[..., Sweep], reference: Reference) -> None:
    moments = random.Random(0)
    killed = sweep()
    recorded: set[str] = set()
    for _ in range(5):
        begun = (killed.run / "config.yaml").is_file()
        session = killed.start(*killed.again(moments.choice(["run", "resume"]) if begun else "run"))
        session.process.join(moments.uniform(0, reference.seconds))
        session.process.kill()
        assert session.wait().code in (-signal.SIGKILL, 0)
        assert recorded <= killed.records().keys()
        recorded = set(killed.records())
    killed.complete()
    assert remove_abandoned(killed.run) == [], "half-written files were left"
    assert_nothing_lost(killed.run, reference.run)


def test_a_search_killed_while_each_kind_of_file_is_written(sweep: Callable[..., Sweep], reference: Reference) -> None:
    killed = sweep()
    _kill_at(killed, SEARCH_FILES, seed=1)
    killed.complete()
    assert remove_abandoned(killed.run) == [], "half-written files were left"
    assert_nothing_lost(killed.run, reference.run)


def test_finalists_killed_while_each_kind_of_file_is_written(
    sweep: Callable[..., Sweep], reference: Reference, reference_with_finalists: Reference
) -> None:
    killed = sweep(**WITH_FINALISTS)
    killed.copy_of(reference.run)
    _kill_at(killed, FINALIST_FILES, seed=2)
    killed.complete()
    assert remove_abandoned(killed.run) == [], "half-written files were left"
    assert_nothing_lost(killed.run, reference_with_finalists.run)


def _kill_at(sweep: Sweep, files: dict[str, str], *, seed: int) -> None:
    """One session after the other, each killed, with its workers, while the next kind of file is written."""
    moments = random.Random(seed)
    for name, pattern in files.items():
        # What becomes the previous checkpoint was written before.
        phase = moments.choice(get_args(Phase)[1:] if name == "previous checkpoint" else get_args(Phase))
        ended = sweep.do(*sweep.again("run"), fault=Fault(Kill(pattern, phase)))
        assert ended.code == -signal.SIGKILL, (name, phase, ended)
