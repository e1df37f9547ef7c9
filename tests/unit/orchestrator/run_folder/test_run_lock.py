"""What both locks promise: on disk and on an object store a run folder has one owner, and a dead one holds nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from lsmha.io.object_store import object_path
from lsmha.io.paths import RunPath
from orchestrator.errors import UserError
from orchestrator.run_folder import lease
from orchestrator.run_folder.ownership import (
    OWNER_FILE,
    RunLock,
    check_free,
    check_owned,
    give_up,
    has_owner,
    lock_of,
    owned,
)

KILLED = """
import os, signal, sys
from pathlib import Path
from orchestrator.run_folder.ownership import owned
with owned(Path(sys.argv[1])):
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(params=["disk", "object store"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunPath]:
    """A run folder, empty."""
    if request.param == "disk":
        yield tmp_path
        return
    monkeypatch.setattr(lease, "SETTLE_S", 0.1)
    yield object_path("memory://bucket/run")
    store = fsspec.filesystem("memory")
    store.store.clear()
    store.pseudo_dirs[:] = [""]


def files(folder: RunPath) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else {}


def test_it_keeps_others_out_and_names_the_owner(folder: RunPath) -> None:
    mine, theirs = lock_of(folder), lock_of(folder)
    with mine.held():
        before = files(folder)
        assert theirs.is_held()
        refusal = rf"in use by process {os.getpid()} on {os.uname().nodename}; one process at a time may work on a run"
        with pytest.raises(UserError, match=refusal), theirs.held():
            pass
        assert theirs.refusal().startswith(f"{folder}: in use by process {os.getpid()}")
        assert files(folder) == before, "who is refused changes nothing"
        mine.check()
    assert not theirs.is_held()
    with theirs.held():
        assert mine.is_held()


def test_an_error_in_the_block_passes_and_frees_the_folder(folder: RunPath) -> None:
    with pytest.raises(KeyError, match="mine"), lock_of(folder).held():
        raise KeyError("mine")
    assert not lock_of(folder).is_held()
    with lock_of(folder).held():
        pass


def test_of_several_at_once_one_gets_it(folder: RunPath) -> None:
    together, everybody_asked, answers = threading.Barrier(4), threading.Barrier(4), []

    def contend(lock: RunLock) -> None:
        together.wait()
        try:
            with lock.held():
                answers.append("mine")
                everybody_asked.wait()
        except UserError:
            answers.append("refused")
            everybody_asked.wait()

    contenders = [threading.Thread(target=contend, args=[lock_of(folder)]) for _ in range(4)]
    for contender in contenders:
        contender.start()
    for contender in contenders:
        contender.join()
    assert sorted(answers) == ["mine", "refused", "refused", "refused"]


def test_a_dead_owner_holds_nothing(folder: RunPath) -> None:
    if isinstance(folder, Path):
        subprocess.run([sys.executable, "-c", KILLED, str(folder)], check=False)
    else:
        # The store is in this process, so another one cannot have died there: this is what it would have left.
        gone = {"host": "here", "pid": 2**30, "machine": lease._machine(), "started": "7", "token": "theirs"}
        (folder / OWNER_FILE).write_bytes(json.dumps(gone).encode())
    assert (folder / OWNER_FILE).exists()
    assert not lock_of(folder).is_held()
    with lock_of(folder).held():
        assert json.loads((folder / OWNER_FILE).read_bytes())["pid"] == os.getpid()


def test_looking_writes_nothing(folder: RunPath) -> None:
    for _ in range(2):
        before = files(folder)
        check_free(folder)
        assert not has_owner(folder)
        check_owned(folder)
        assert files(folder) == before
        with owned(folder):
            pass


def test_the_block_ends_as_ever_after_giving_up(folder: RunPath) -> None:
    with owned(folder):
        give_up()
    with owned(folder):
        check_owned(folder)
