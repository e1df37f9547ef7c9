"""How long work takes on a device, to the end of what it started there."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Wall time of a call, from an idle device to an idle device."""
    _synchronize(device)
    started = time.perf_counter()
    work()
    _synchronize(device)
    return time.perf_counter() - started


def computing_seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """What a call takes of the device: of a single CPU thread the time that it computed, in which other processes had
    no part; of several threads, and of a GPU, wall time."""
    if device.type != "cpu" or torch.get_num_threads() > 1:
        return seconds_of(work, device)
    started = time.thread_time()
    work()
    return time.thread_time() - started


def cpu_wait_s() -> float:
    """How long the threads of this process have been ready to compute while others had the CPUs, in seconds, summed
    over those that there are now; 0 where the kernel does not say (`/proc/self/task/*/schedstat`, Linux)."""
    waited_ns = 0
    for schedstat in Path("/proc/self/task").glob("*/schedstat"):
        try:
            waited_ns += int(schedstat.read_text().split()[1])
        except (OSError, IndexError, ValueError):  # the thread has ended, or the kernel keeps no such count
            continue
    return waited_ns / 1e9


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
