"""Signals reach the main thread as an exception, or end the process where it can't be reached."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from orchestrator.errors import Interrupted
from orchestrator.interrupts import defer_interrupts, interrupts_as_exceptions


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_an_exception_and_the_handlers_come_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    script = f"""
import os, signal
from orchestrator.errors import Interrupted
from orchestrator.interrupts import interrupts_as_exceptions, defer_interrupts
before = signal.getsignal({int(number)})
try:
    with interrupts_as_exceptions():
        try:
            os.kill(os.getpid(), {int(number)})
            signal.pause()
        except Interrupted:
            raise SystemError("what compiled code makes of it")
except Interrupted as interrupted:
    assert signal.getsignal({int(number)}) == before
    os._exit(interrupted.exit_code)
"""
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == 128 + number
    assert signal.getsignal(number) == before


@pytest.mark.parametrize("error", [None, OSError("full")], ids=["done", "failed"])
def test_a_signal_that_is_held_back_comes_behind_the_block(error: Exception | None) -> None:
    done = []

    def work() -> None:
        with defer_interrupts():
            with defer_interrupts():
                signal.raise_signal(signal.SIGTERM)
            done.append("all of it")
            if error:
                raise error
        done.append("more")

    with pytest.raises(Interrupted, match="SIGTERM"), interrupts_as_exceptions():
        work()
    assert done == ["all of it"]
    with pytest.raises(Interrupted, match="SIGINT"), interrupts_as_exceptions():
        signal.raise_signal(signal.SIGINT)


def test_a_main_thread_that_is_stuck_is_left(tmp_path: Path) -> None:
    # Another handler in the main thread stands for code that never returns to the interpreter.
    script = """
import os, signal, sys, time
from pathlib import Path
from orchestrator.errors import Interrupted
from orchestrator.interrupts import interrupts_as_exceptions, defer_interrupts
with interrupts_as_exceptions(when_stuck=lambda who: Path(sys.argv[1]).write_text(str(who)), grace_s=0.2):
    signal.signal(signal.SIGTERM, lambda number, frame: time.sleep(50))
    os.kill(os.getpid(), signal.SIGTERM)
"""
    said = tmp_path / "said"
    assert subprocess.run([sys.executable, "-c", script, str(said)], timeout=30).returncode == 143
    assert said.read_text() == "SIGTERM"


def test_other_threads_hold_nothing_back() -> None:
    held, interrupted = threading.Event(), threading.Event()

    def hold() -> None:
        with defer_interrupts():
            held.set()
            interrupted.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(30)
    try:
        with pytest.raises(Interrupted), interrupts_as_exceptions():
            signal.raise_signal(signal.SIGINT)
    finally:
        interrupted.set()
        thread.join()


@pytest.mark.parametrize(("first", "second"), [("SIGINT", "SIGINT"), ("SIGTERM", "SIGINT"), ("SIGINT", "SIGTERM")])
def test_a_second_signal_ends_the_process_at_once(tmp_path: Path, first: str, second: str) -> None:
    script = f"""
import os, signal, sys, time
from pathlib import Path
from orchestrator.errors import Interrupted
from orchestrator.interrupts import interrupts_as_exceptions, defer_interrupts
unwound = Path(sys.argv[1])
with interrupts_as_exceptions(when_stuck=lambda _: unwound.write_text("stuck"), grace_s=50):
    try:
        os.kill(os.getpid(), signal.{first})
        signal.pause()
    except Interrupted:
        try:
            os.kill(os.getpid(), signal.{second})
            time.sleep(50)
        except Interrupted:
            time.sleep(50)  # a clean-up that takes its time
        unwound.write_text("unwound")
"""
    unwound = tmp_path / "unwound"
    terminal, its_end = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-c", script, str(unwound)], timeout=30, stdout=its_end, env=os.environ | {"TERM": "xterm"}
    )
    assert done.returncode == 128 + signal.Signals[second]
    assert not unwound.exists()
    assert os.read(terminal, 64) == b"\x1b[?25h"  # the cursor, which a progress display hides
    os.close(terminal)
    os.close(its_end)


@pytest.mark.parametrize("command", [[], ["nohup"]], ids=["plain", "nohup"])
def test_a_closed_terminal_is_one_signal_and_none_to_nohup(command: list[str], tmp_path: Path) -> None:
    script = """
import os, signal, sys, time
from pathlib import Path
from orchestrator.errors import Interrupted
from orchestrator.interrupts import interrupts_as_exceptions
with interrupts_as_exceptions(grace_s=50):
    try:
        os.kill(os.getpid(), signal.SIGHUP)
        time.sleep(0.1)
    except Interrupted:
        os.kill(os.getpid(), signal.SIGHUP)
        time.sleep(0.1)
        Path(sys.argv[1]).write_text("unwound")
"""
    unwound = tmp_path / "unwound"
    done = subprocess.run([*command, sys.executable, "-c", script, str(unwound)], timeout=60, capture_output=True)
    assert (done.returncode, unwound.exists()) == (0, not command), done


def test_without_a_signal_nothing_happens() -> None:
    with pytest.raises(KeyError), interrupts_as_exceptions(grace_s=0):
        raise KeyError
    assert os.getpid()
    assert issubclass(Interrupted, BaseException)
    assert not issubclass(Interrupted, Exception)
