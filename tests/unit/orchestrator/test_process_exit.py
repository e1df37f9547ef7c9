"""The way out that nothing may block."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import threading, time
from orchestrator import process_exit as ending_process
ending_process.LAST_WORK_S = 0.3
def last_work():
    {work}
threading.Thread(target=ending_process.end_process, args=(4, "it is over"), kwargs=dict(last_work=last_work)).start()
time.sleep(60)  # the main thread is stuck
"""


@pytest.mark.parametrize(
    ("work", "printed", "errors"),
    [
        ("print('written')", "written\n", ["error: it is over"]),
        ("raise OSError('no space')", "", ["error: at the end: OSError: no space", "error: it is over"]),
        ("time.sleep(60)", "", ["error: it is over"]),
    ],
    ids=["works", "fails", "hangs"],
)
def test_the_process_ends_whatever_its_last_work_does(work: str, printed: str, errors: list[str]) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(work=work)], capture_output=True, text=True, timeout=30, check=False
    )
    assert (ended.returncode, ended.stdout, ended.stderr.splitlines()) == (4, printed, errors)
