"""How many training runs a device serves best at a time, by measurement: small networks leave a large GPU idle."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import torch

from lsmha.bench.subject import Subject, SubjectProcess, together
from lsmha.config import ModelConfig, TrainConfig
from lsmha.device_memory import free_memory
from lsmha.errors import SubjectError

MIN_SPEEDUP = 1.1
"""Twice as many runs must train so many times as fast together: each of them then takes up to twice as long."""
RESERVED_FRACTION = 0.1
"""Part of the device's memory that is left alone."""
TURNS = 3


@dataclass(frozen=True)
class Packing:
    """What was measured, and what follows from it."""

    runs: int
    """Runs at a time."""
    images_per_s: dict[int, float]
    """Of all runs together, by their number."""
    memory: int
    """Bytes of the device that each run takes."""


def choose_packing(measure: Callable[[int], tuple[float, int]], *, max_runs: int, memory: int) -> Packing:
    """Double the runs until there is too little memory for them, or they are not worth it.

    Args:
        measure: Images/s of so many runs together, and the bytes that each of them takes.
        max_runs: Runs that there may be.
        memory: Bytes that there are.

    Raises:
        SubjectError: A single run could not train.
    """
    images_per_s, each = measure(1)
    found, runs = {1: images_per_s}, 1
    while (more := 2 * runs) <= max_runs and more * each <= (1 - RESERVED_FRACTION) * memory:
        try:
            images_per_s, each = measure(more)
        except SubjectError:  # out of memory after all
            break
        found[more] = images_per_s
        if images_per_s < MIN_SPEEDUP * found[runs]:
            break
        runs = more
    return Packing(runs, found, each)


def measure_packing(
    model: ModelConfig,
    train: TrainConfig,
    *,
    device: torch.device,
    max_runs: int,
    data_bytes: int = 0,
    run_s: float = 2.0,
    on_measured: Callable[[int, float], None] = lambda *_: None,
) -> Packing:
    """Train more and more copies of a network beside one another, each in a process of its own, on random images.

    Args:
        model: The network.
        train: The recipe.
        device: Where to train; nothing else may use it meanwhile.
        max_runs: Runs at a time that there may be.
        data_bytes: What a run's own copy of the data set takes there, besides.
        run_s: Seconds of each of the `TURNS` measurements of a number of runs, roughly.
        on_measured: Told a number of runs and their images/s.

    Raises:
        SubjectError: The network could not be trained.
    """
    memory = free_memory(device)
    with ExitStack() as ending:
        processes: list[SubjectProcess] = []

        def measure(runs: int) -> tuple[float, int]:
            subject = Subject("lsmha", model, train, str(device), tuned=True)
            new = [SubjectProcess(subject, run_s=run_s) for _ in range(runs - len(processes))]
            for process in new:
                ending.callback(process.kill)
            for process in new:
                process.warm_up()
            processes.extend(new)
            images_per_s = statistics.median(sum(together(processes)) for _ in range(TURNS))
            on_measured(runs, images_per_s)
            return images_per_s, max(0, memory - free_memory(device)) // runs + data_bytes

        return choose_packing(measure, max_runs=max_runs, memory=memory)
