"""Printing where nobody reads any more, and on consoles that lack characters."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from orchestrator.terminal import Terminal

LINES = 20_000
"""More than a pipe holds."""
PRINT_ON = f"""
import os, sys
from orchestrator.standard_streams import bear_with_readers
from orchestrator.terminal import Terminal
bear_with_readers()
terminal = Terminal()
for line in range({LINES}):
    terminal.say(f"line {{line}}")
print("also", flush=True)
os.write(1, b"and what is written below Python")
os.system("echo and by children")
open(sys.argv[1], "w").write("work done")
"""


@pytest.mark.parametrize("reader", ["head -1", "true", "tee /dev/full"])
@pytest.mark.parametrize("streams", ["", "2>&1"])
def test_work_goes_on_when_its_reader_is_gone(tmp_path: Path, reader: str, streams: str) -> None:
    pipe = f'"$0" -c "$1" "$2" {streams} | {reader}; echo "code ${{PIPESTATUS[0]}}"'
    done = tmp_path / "done"
    found = subprocess.run(
        ["bash", "-c", pipe, sys.executable, PRINT_ON, str(done)], capture_output=True, text=True, check=True
    )
    assert found.stdout.endswith("code 0\n"), found
    assert "BrokenPipe" not in found.stderr
    assert done.read_text() == "work done"


def test_work_goes_on_when_its_terminal_is_closed(tmp_path: Path) -> None:
    terminal, its_end = pty.openpty()
    done = tmp_path / "done"
    process = subprocess.Popen(
        [sys.executable, "-c", PRINT_ON, str(done)], stdin=subprocess.DEVNULL, stdout=its_end, stderr=its_end
    )
    os.close(its_end)
    os.read(terminal, 64)
    os.close(terminal)
    assert process.wait(60) == 0
    assert done.read_text() == "work done"


def test_output_is_whole_where_it_is_read(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PRINT_ON, str(tmp_path / "done")]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = [f"line {line}" for line in range(LINES)]
    assert found.stdout.splitlines()[: LINES + 1] == [*lines, "also"]


@pytest.mark.parametrize(
    ("encoding", "shown"), [("ascii", "0.5 ? 0.1 ?"), ("latin-1", "0.5 \xb1 0.1 ?"), ("utf-8", "0.5 \xb1 0.1 …")]
)
def test_consoles_that_lack_characters(encoding: str, shown: str) -> None:
    script = (
        "from orchestrator.standard_streams import bear_with_readers; from orchestrator.terminal import Terminal;"
        "from rich.table import Table; bear_with_readers();"
        "table = Table('a'); table.add_row('0.5 \\u00b1 0.1 \\u2026');"
        "Terminal().show(table); Terminal().say('0.5 \\u00b1 0.1 \\u2026')"
    )
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    found = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, check=True)
    text = found.stdout.decode(encoding)
    assert text.count(shown) == 2


def test_no_standard_output_at_all(tmp_path: Path) -> None:
    done = tmp_path / "done"
    closed = [
        "bash",
        "-c",
        '"$0" -c "$1" "$2" >&- 2>&-',
        sys.executable,
        PRINT_ON.replace("os.write", "lambda *_: _"),
        str(done),
    ]
    subprocess.run(closed, check=True)
    assert done.exists()


def test_nothing_is_live_in_a_file() -> None:
    """Not even where colors are forced, as `FORCE_COLOR` does."""
    assert not Terminal(Console(file=StringIO(), force_terminal=True)).is_live
