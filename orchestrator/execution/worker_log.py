"""What a worker process shows of the job that it does: lines in its log, and its name.

A crew does many jobs in one Ray task, so the names that Ray gives say nothing of trials. The log is in Ray's dashboard,
and in `logs/worker-*.out` of its session on the node; the name is in the dashboard's list of workers, and in `ps`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from ray import _raylet


@contextmanager
def shown(job_id: str) -> Iterator[None]:
    """Log the job's start, and the exception that ends it; meanwhile the process is called like `ray::crew:t0007`."""
    with _process_called(job_id):
        log(job_id, "started")
        try:
            yield
        except BaseException as error:
            log(job_id, "broken off", f"{type(error).__name__}: {error}")
            raise


def log(job_id: str, event: str, particulars: Any = None) -> None:
    """One line: time, job, what happened, and what came with it; of a result, the last epoch. Never fails."""
    if isinstance(particulars, dict):
        curve = particulars.get("curve")
        values = (curve[-1] if curve else {}) | {name: one for name, one in particulars.items() if name != "curve"}
        particulars = " ".join(f"{name}={_short(value)}" for name, value in values.items())
        event = "" if event == "epoch" else event  # as "epoch=3" it is there already
    line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {job_id}: {event} {'' if particulars is None else particulars}"
    with suppress(OSError, ValueError):  # a full disk, a closed log: the job can do without
        print(" ".join(line.split()), flush=True)


@contextmanager
def _process_called(job_id: str) -> Iterator[None]:
    # Ray names its workers by these two; should it rename them, processes just keep the names of their tasks.
    get, rename = (getattr(_raylet, name, None) for name in ("getproctitle", "setproctitle"))
    if get is None or rename is None:
        yield
        return
    title = get()
    rename(f"{title}:{job_id}")
    try:
        yield
    finally:
        rename(title)


def _short(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)
