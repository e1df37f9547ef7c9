"""How long threads waited for CPUs that others had."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lsmha.devices.stopwatch import cpu_wait_s

ON_ONE_CPU = """
import os, subprocess, sys, time
from lsmha.devices.stopwatch import cpu_wait_s

os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
started, waited = time.perf_counter(), cpu_wait_s()
while time.perf_counter() < started + 1:
    pass
print((cpu_wait_s() - waited) / (time.perf_counter() - started))
other.kill()
"""


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="this kernel does not count waiting")
def test_waiting_for_a_cpu_is_counted() -> None:
    """Two processes that want the one CPU get half of it each, up to what others of the machine do."""
    told = subprocess.run([sys.executable, "-c", ON_ONE_CPU], check=True, capture_output=True, text=True).stdout
    assert 0.2 < float(told) < 1.0


def test_where_the_kernel_counts_nothing_there_was_no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda self: "")
    assert cpu_wait_s() == 0.0
