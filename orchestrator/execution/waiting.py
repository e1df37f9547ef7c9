"""Waiting for tasks such that a signal is noticed meanwhile: Ray's own waiting, in compiled code, is deaf."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import ray


def done_among(tasks: Iterable[ray.ObjectRef], *, within_s: float = 1.0) -> list[ray.ObjectRef]:
    """A task that is done; none where none was within so many seconds."""
    done, _ = ray.wait(list(tasks), num_returns=1, timeout=within_s)
    return list(done)


def result_of(task: ray.ObjectRef) -> Any:
    """What a task returns, or raises."""
    while not done_among([task]):
        pass
    return ray.get(task)
