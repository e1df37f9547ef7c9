"""A training loop in a process of its own, with an environment of its own, that trains when it is told to."""

from __future__ import annotations

import json
import math
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from lsmha.bench.loops import LoopName, build_loop
from lsmha.config import ModelConfig, TrainConfig
from lsmha.devices.environment import ALLOCATOR_ENVIRONMENT
from lsmha.errors import SubjectError


@dataclass(frozen=True)
class Subject:
    """What trains in such a process."""

    loop: LoopName
    model: ModelConfig
    train: TrainConfig
    device: str
    """As torch names it: cpu or cuda."""
    tuned: bool
    """Whether the process starts with the environment that this project's workers have."""


class SubjectProcess:
    """The process, idle until it is told to run; made by `started`, or, to be `warm_up`ed beside others, as it is."""

    def __init__(self, subject: Subject, *, run_s: float) -> None:
        environment = {name: value for name, value in os.environ.items() if name not in ALLOCATOR_ENVIRONMENT}
        if subject.tuned:
            environment |= ALLOCATOR_ENVIRONMENT
        # What goes by the name of this package in the working folder is not to be run.
        environment["PYTHONSAFEPATH"] = "1"
        task = {
            "loop": subject.loop,
            "model": subject.model.model_dump_json(),
            "train": subject.train.model_dump_json(),
            "device": subject.device,
            "run_s": run_s,
        }
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - it lives as long as the process
        self.process = subprocess.Popen(
            [sys.executable, "-m", __name__, json.dumps(task)],
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True,
        )  # fmt: skip

    def warm_up(self) -> None:
        """Wait until it is ready."""
        ready = self._answer()
        self.num_params: int = ready["num_params"]
        """Parameters of its network."""
        self.steps: int = ready["steps"]
        """Steps in each run."""

    def images_per_s(self) -> float:
        """Let it train for one run."""
        (speed,) = together([self])
        return speed

    def start(self) -> None:
        """Let it train for one run, without waiting for the end."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def end(self) -> float:
        """Wait for the end of the run; returns its images/s."""
        return float(self._answer()["images_per_s"])

    def kill(self) -> None:
        """End it, whatever it does."""
        with self._errors, self.process:  # closes its files and pipes
            self.process.kill()

    def peak_memory_mib(self) -> float:
        """Let it end; returns its largest resident memory, in MiB."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return float(self._answer()["peak_memory_mib"])

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self._errors.seek(0)
            last_words = (self._errors.read().strip().splitlines() or ["nothing was said"])[-1]
            raise SubjectError(f"a process that was to train ended: {last_words}")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def started(subject: Subject, *, run_s: float) -> Iterator[SubjectProcess]:
    """The subject's process, warmed up; a run of it takes about `run_s` seconds, and at least one step.

    Raises:
        SubjectError: It could not train; likewise from the methods of what is yielded.
    """
    running = SubjectProcess(subject, run_s=run_s)
    try:
        running.warm_up()
        yield running
    finally:
        running.kill()


def together(processes: Sequence[SubjectProcess]) -> list[float]:
    """Let all train for one run at the same time; returns their images/s."""
    for process in processes:
        process.start()
    return [process.end() for process in processes]


def _compete(task: dict[str, Any]) -> None:
    model, train = ModelConfig.model_validate_json(task["model"]), TrainConfig.model_validate_json(task["train"])

    def build(steps: int) -> Any:
        return build_loop(task["loop"], model, train, steps=steps, device=torch.device(task["device"]))

    loop, steps = build(1), 1
    loop.run()
    enough = math.ceil(task["run_s"] / loop.run())
    if enough > 1:
        loop, steps = build(enough), enough
        loop.run()
    _say({"num_params": loop.num_params, "steps": steps})
    for _ in sys.stdin:
        _say({"images_per_s": steps * train.batch_size / loop.run()})
    _say({"peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024})


def _say(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _compete(json.loads(sys.argv[1]))
