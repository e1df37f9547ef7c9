"""One process at a time: others are told which, and a dead one holds nothing."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from broken_storage import mounted
from snapshots import snapshot

from orchestrator.errors import UserError
from orchestrator.run_folder.ownership import OWNER_FILE, check_free, has_owner, owned
from orchestrator.run_folder.status_file import describe_stage, mark_stage

OWNER = """
import sys
import tempfile
from pathlib import Path
from orchestrator.run_folder.ownership import owned
with owned(Path(sys.argv[1])):
    print("mine", flush=True)
    sys.stdin.readline()
"""
CONTENDER = """
import sys, time
from pathlib import Path
from orchestrator.errors import UserError
from orchestrator.run_folder.ownership import owned
sys.stdin.readline()
try:
    with owned(Path(sys.argv[1])):
        print("mine", flush=True)
        time.sleep(2)
except UserError as error:
    print(error, flush=True)
"""


@pytest.fixture
def start() -> Iterator[Callable[[str, Path], subprocess.Popen[str]]]:
    """Starts a process that wants a folder."""
    processes = []

    def start(script: str, folder: Path) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", script, str(folder)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.parametrize("how", ["killed", "done"])
def test_a_second_process_is_refused_until_the_first_is_gone(
    start: Callable[[str, Path], subprocess.Popen[str]], tmp_path: Path, how: str
) -> None:
    owner = start(OWNER, tmp_path)
    assert said(owner) == "mine"
    before = snapshot(tmp_path)
    for attempt in (lambda: check_free(tmp_path), owned(tmp_path).__enter__):
        with pytest.raises(UserError, match=rf"in use by process {owner.pid} on {os.uname().nodename};"):
            attempt()
    assert has_owner(tmp_path)
    assert snapshot(tmp_path) == before  # the owner is still named
    if how == "killed":
        owner.send_signal(signal.SIGKILL)
        owner.wait()
    else:
        owner.communicate("\n")
    assert not has_owner(tmp_path)
    check_free(tmp_path)
    with owned(tmp_path):
        assert json.loads((tmp_path / OWNER_FILE).read_text()) == {"host": os.uname().nodename, "pid": os.getpid()}


def test_of_several_at_once_one_gets_it(start: Callable[[str, Path], subprocess.Popen[str]], tmp_path: Path) -> None:
    contenders = [start(CONTENDER, tmp_path) for _ in range(4)]
    for contender in contenders:
        assert contender.stdin is not None
        contender.stdin.write("\n")
        contender.stdin.flush()
    answers = [said(contender) for contender in contenders]
    assert answers.count("mine") == 1, answers
    winner = contenders[answers.index("mine")].pid
    assert sum(f"in use by process {winner} on" in answer for answer in answers) == 3, answers


def test_looking_writes_nothing(tmp_path: Path) -> None:
    check_free(tmp_path)
    assert list(tmp_path.iterdir()) == []
    with owned(tmp_path):
        pass
    before = snapshot(tmp_path)
    check_free(tmp_path)
    assert snapshot(tmp_path) == before


def test_whoever_looks_does_not_keep_the_next_owner_out(tmp_path: Path) -> None:
    with owned(tmp_path):
        pass
    looker = subprocess.Popen(
        [sys.executable, "-c", "import fcntl, sys, time; file = open(sys.argv[1], 'r+'); "
         "fcntl.flock(file, fcntl.LOCK_EX); print('held', flush=True); time.sleep(0.2)",
         str(tmp_path / OWNER_FILE)], stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert said(looker) == "held"
    with owned(tmp_path):
        pass
    looker.communicate()


def test_an_error_in_the_block_frees_the_folder(tmp_path: Path) -> None:
    with pytest.raises(KeyError), owned(tmp_path):
        raise KeyError
    with owned(tmp_path):
        pass


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), owned(tmp_path / "nothing"):
        pass
    check_free(tmp_path / "nothing")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["", "{", '{"pid": 1}'])
def test_an_owner_that_did_not_get_to_write_its_name(
    start: Callable[[str, Path], subprocess.Popen[str]], tmp_path: Path, content: str
) -> None:
    owner = start(OWNER, tmp_path)
    assert said(owner) == "mine"
    (tmp_path / OWNER_FILE).write_text(content)
    with pytest.raises(UserError, match="in use by another process;"):
        check_free(tmp_path)


LOOK_AS_NOBODY = """
import os, sys
from pathlib import Path
from orchestrator.run_folder.status_file import describe_stage
os.setgid(65534)
os.setuid(65534)
print(describe_stage(Path(sys.argv[1])))
"""


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that others may look into: pytest's own is closed to them."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def seen_by_nobody(folder: Path) -> str:
    command = [sys.executable, "-c", LOOK_AS_NOBODY, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_a_colleague_who_may_just_read_is_told_of_the_owner(open_folder: Path) -> None:
    process = f"process {os.getpid()} on {os.uname().nodename}"
    assert seen_by_nobody(open_folder) == "not started"
    with owned(open_folder):
        mark_stage(open_folder, "search")
        assert seen_by_nobody(open_folder) == f"in stage search ({process})"
        (open_folder / OWNER_FILE).chmod(0o600)
        unknown = f"in stage search ({process}, which may be gone: its lock cannot be looked at)"
        assert seen_by_nobody(open_folder) == unknown
    (open_folder / OWNER_FILE).chmod(0o644)
    assert seen_by_nobody(open_folder) == f"interrupted in stage search ({process} is gone)"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_a_colleague_to_whom_the_folder_is_read_only_is_told_of_the_owner(open_folder: Path) -> None:
    with owned(open_folder):
        mark_stage(open_folder, "search")
        with mounted(open_folder, "--bind", "-o", "ro", open_folder):
            assert seen_by_nobody(open_folder).startswith(f"in stage search (process {os.getpid()} on ")
            assert not seen_by_nobody(open_folder).endswith("looked at)")


@pytest.mark.parametrize("missing", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, missing: int) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(missing, os.strerror(missing))

    monkeypatch.setattr("fcntl.flock", flock)
    with (
        pytest.raises(UserError, match=r"its file system has no locks \(.+\); use another one, or a bucket"),
        owned(tmp_path),
    ):
        pass
    assert list(tmp_path.iterdir()) == []
    # A run from elsewhere can be read, but not gone on with.
    (tmp_path / OWNER_FILE).write_text("{}")
    (tmp_path / "status.json").write_text('{"stage": "search", "pid": 7, "host": "there"}')
    before = snapshot(tmp_path)
    assert has_owner(tmp_path) is None
    assert describe_stage(tmp_path) == (
        "in stage search (process 7 on there, which may be gone: its lock cannot be looked at)"
    )
    check_free(tmp_path)
    with pytest.raises(UserError, match=r"its file system has no locks"), owned(tmp_path):
        pass
    assert snapshot(tmp_path) == before
