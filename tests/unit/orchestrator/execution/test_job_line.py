"""Jobs in line: in what order, and which of them together, they are taken."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from lsmha.config import ModelConfig, TrainConfig
from orchestrator.execution.job_line import JobLine
from orchestrator.execution.training_job import TrainingJob


def job(name: str, *, epochs: int = 1, seed: int = 0) -> TrainingJob:
    recipe = TrainConfig(epochs=epochs, seed=seed, warmup_epochs=0.0)
    return TrainingJob(name, ModelConfig(), recipe, Path(f"{name}.pt"))


def jobs(*names: str) -> list[TrainingJob]:
    """Jobs that have nothing in common."""
    return [job(name, epochs=epochs) for epochs, name in enumerate(names, 1)]


def all_of(line: JobLine, limit: int = 1) -> list[str]:
    """What is taken until nothing is left, each by the ids of its jobs."""
    taken = []
    while together := line.take(limit):
        taken.append("+".join(job.id for job in together))
    return taken


def test_jobs_are_taken_in_order_and_once() -> None:
    line = JobLine()
    line.put(jobs("a", "b", "c"))
    assert len(line) == 3
    assert line.take() == tuple(jobs("a"))
    assert all_of(line) == ["b", "c"]
    assert line.take() == ()
    assert len(line) == 0


def test_jobs_that_are_put_first_keep_their_order() -> None:
    line = JobLine()
    line.put(jobs("c", "d"))
    line.put(jobs("a", "b"), first=True)
    line.put(jobs("e"))
    assert all_of(line) == ["a", "b", "c", "d", "e"]


SEEDS = [job("a", seed=0), job("b", epochs=2), job("c", seed=1), job("d"), job("e", seed=2), job("f", seed=3), job("g")]
"""All but b differ by their seeds alone."""


def test_jobs_that_differ_by_their_seeds_are_taken_together() -> None:
    line = JobLine()
    line.put(SEEDS, alone=("d", "g"))
    assert all_of(line, limit=3) == ["a+c+e", "b", "d", "f", "g"]


def test_whoever_takes_one_gets_one() -> None:
    line = JobLine()
    line.put(SEEDS)
    assert all_of(line) == list("abcdefg")


def test_a_job_that_is_to_be_alone_stays_so_when_it_comes_again() -> None:
    line = JobLine()
    line.put([job("a", seed=0), job("b", seed=1)])
    together = line.take(2)
    line.put(together, first=True, alone={"a", "b"})
    assert all_of(line, limit=2) == ["a", "b"]


def test_what_travels_needs_neither_torch_nor_ray() -> None:
    code = """
import pickle, sys
from pathlib import Path
from lsmha.config import ModelConfig, TrainConfig
from orchestrator.execution.job_line import JobLine
from orchestrator.execution.training_job import Completed, TrainingJob, TrainingResult

job = TrainingJob("a", ModelConfig(), TrainConfig(), Path("a.pt"), Path("out"))
event = Completed("a", TrainingResult(({"epoch": 1},), "fp32", "sdpa", "cpu", {"test_loss": 1.0}))
assert pickle.loads(pickle.dumps((job, event))) == (job, event)
assert not {"torch", "ray"} & set(sys.modules), sorted({"torch", "ray"} & set(sys.modules))
"""
    subprocess.run([sys.executable, "-c", code], check=True)
