"""How long work takes on a device, to the end of what it started there."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Wall time of a call, from an idle device to an idle device."""
    _synchronize(device)
    started = time.perf_counter()
    work()
    _synchronize(device)
    return time.perf_counter() - started


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
