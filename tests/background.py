"""Processes beside a test, and waiting for what they do."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PATIENCE_S = 600.0
"""After that what a test waits for has hung, on a machine however slow and busy; a test that passes waits less."""


@contextmanager
def running(command: list[str], log: Path, *, env: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process in the background; Ray's head ends its own children. (`ray stop` would end every cluster here.)"""
    with log.open("w") as output:
        process = subprocess.Popen(
            command, env={**os.environ, **env}, stdout=output, stderr=output, start_new_session=True
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_for(
    condition: Callable[[], Any],
    what: str,
    seconds: float = PATIENCE_S,
    *,
    said: Callable[[], str] = str,
    every_s: float = 0.1,
) -> Any:
    """Wait until the condition finds something, and return that.

    Raises:
        TimeoutError: It has not; the message ends with what was `said` meanwhile.
    """
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:g} s in vain for {what}\n{said()}".rstrip())
        time.sleep(every_s)
    return found
