"""What the machine's CPUs do besides this process."""

from __future__ import annotations

import os
import time
from pathlib import Path

_STAT = Path("/proc/stat")
_SHORTEST_S = 0.2
"""The kernel counts in hundredths of a second: over less than this they say nothing."""


class BackgroundLoad:
    """Work of other processes since the last reading.

    In a virtual machine that includes what its host gave to others. Nothing is known where there is no /proc/stat.
    """

    def __init__(self) -> None:
        self._last = self._now()

    def read(self) -> float | None:
        """Share of all CPU time since the last reading that others took, 0 to 1; None if that is not known."""
        before, self._last = self._last, self._now()
        (began, busy_before, own_before), (ended, busy, own) = before, self._last
        if busy is None or busy_before is None or ended - began < _SHORTEST_S:
            return None
        background = (busy - busy_before) - (own - own_before)
        return min(1.0, max(0.0, background / ((ended - began) * (os.cpu_count() or 1))))

    def _now(self) -> tuple[float, float | None, float]:
        return time.perf_counter(), _busy_s(), time.process_time()


def _busy_s() -> float | None:
    """CPU seconds of all processes, interrupts and other guests of the host, since the machine started."""
    try:
        user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, _STAT.read_text().split()[1:9])
    except (OSError, ValueError):
        return None
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
