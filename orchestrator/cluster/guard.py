"""A process that outlives the driver of a local cluster, to end what a killed driver leaves of that cluster.

Ray ends most of it by itself. Its agents, though, want to tell the head of their raylet's end, which is dead as well,
and wait a minute for it. Run as a script: its standard input ends when the driver does, with a word where the driver
has shut down Ray itself.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil

GRACE_S = 3


@contextmanager
def cluster_guard() -> Iterator[None]:
    """All that this process has started by now ends, or is killed, when the block ends or this process does."""
    # A session of its own: what signals the driver's process group does not reach it. The path, not `-m`, which would
    # import whatever goes by that name in the working folder.
    with subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, start_new_session=True) as guard:
        try:
            yield
        finally:
            assert guard.stdin is not None
            with suppress(BrokenPipeError):
                guard.stdin.write(b"at once")


def _guard() -> None:
    guard = psutil.Process()
    driver = guard.parent()
    guarded = [process for process in driver.children(recursive=True) if process != guard] if driver else []
    at_once = sys.stdin.buffer.read()
    _, left = psutil.wait_procs(guarded, timeout=0 if at_once else GRACE_S)
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()


if __name__ == "__main__":
    _guard()
