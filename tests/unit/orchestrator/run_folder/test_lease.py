"""A run folder on an object store has one owner, and one that lost it writes no more."""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import fsspec
import pytest

from lsmha.io.object_store import ObjectPath, object_path
from orchestrator.config.sweep import SweepConfig
from orchestrator.errors import StorageError, UserError
from orchestrator.run_folder import lease
from orchestrator.run_folder.ledger import Ledger
from orchestrator.run_folder.ownership import has_owner, owned
from orchestrator.run_folder.records import LatencyRecord
from orchestrator.run_folder.status_file import mark_stage
from orchestrator.run_folder.tables import write_tables
from orchestrator.storage_errors import translate_storage_errors

THEIRS = {"host": "elsewhere", "pid": 1, "machine": "another", "started": "1", "token": "theirs"}


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "SETTLE_S", 0.0)
    monkeypatch.setattr(lease, "RENEW_S", 0.02)


@pytest.fixture
def folder() -> Iterator[ObjectPath]:
    """A folder of a store in this process."""
    yield object_path("memory://bucket/run")
    store = fsspec.filesystem("memory")
    store.store.clear()
    store.pseudo_dirs[:] = [""]


def write_lease(folder: ObjectPath, *, age_s: float = 0, **owner: Any) -> None:
    """Somebody's lease, last renewed so long ago."""
    file = folder / "owner.json"
    file.write_bytes(json.dumps({**THEIRS, **owner}).encode())
    file.fs.store[file.path].modified -= timedelta(seconds=age_s)


def owner_of(folder: ObjectPath) -> str:
    return json.loads((folder / "owner.json").read_bytes())["token"]


def test_the_lease_goes_with_its_owner(folder: ObjectPath) -> None:
    with owned(folder):
        token = owner_of(folder)
        with pytest.raises(UserError, match="in use by process"), owned(folder):
            pass
        assert owner_of(folder) == token
    assert not folder.exists()


@pytest.mark.parametrize(
    ("age_s", "owner", "free"),
    [
        (lease.LEASE_S - 5, {}, False),
        (lease.LEASE_S + 1, {}, True),
        (0, {"machine": lease._machine(), "pid": os.getpid(), "started": lease._start_time(os.getpid())}, False),
        (0, {"machine": lease._machine(), "pid": os.getpid(), "started": "7"}, True),
        (0, {"machine": lease._machine(), "pid": 2**30}, True),
        (0, {"machine": None, "pid": 2**30, "started": None}, False),
    ],
    ids=["renewed", "not renewed", "alive here", "pid used again", "gone here", "who knows where"],
)
def test_a_dead_owner_owns_nothing(folder: ObjectPath, age_s: float, owner: dict[str, Any], free: bool) -> None:
    write_lease(folder, age_s=age_s, **owner)
    assert has_owner(folder) is not free
    if free:
        with owned(folder):
            assert owner_of(folder) != "theirs"
    else:
        with pytest.raises(UserError, match="one process at a time"), owned(folder):
            pass
        assert owner_of(folder) == "theirs"


@pytest.mark.parametrize("content", [b"", b"{", b"[]"])
def test_a_lease_that_cannot_be_read_counts_for_its_time(folder: ObjectPath, content: bytes) -> None:
    (folder / "owner.json").write_bytes(content)
    with pytest.raises(UserError, match="in use by another process;"), owned(folder):
        pass


def test_of_several_that_take_over_at_once_one_gets_it(folder: ObjectPath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "SETTLE_S", 0.2)
    write_lease(folder, age_s=lease.LEASE_S + 1)
    start, answers = threading.Barrier(4), []

    def contend() -> None:
        start.wait()
        try:
            lease.Lease(folder / "owner.json").take()
            answers.append("mine")
        except UserError:
            answers.append("refused")

    threads = [threading.Thread(target=contend) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == ["mine", "refused", "refused", "refused"]


def test_whoever_is_overtaken_while_it_takes_over_is_refused(
    folder: ObjectPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_lease(folder, age_s=lease.LEASE_S + 1)
    monkeypatch.setattr(lease.time, "sleep", lambda _: write_lease(folder))  # deleted and created by a slower one
    with pytest.raises(UserError, match="in use by process 1 on elsewhere"):
        lease.Lease(folder / "owner.json").take()


@pytest.mark.parametrize(
    ("lose", "words"),
    [
        (write_lease, "taken over by process 1 on elsewhere"),
        (lambda folder: (folder / "owner.json").unlink(), "the lease on the run is gone"),
    ],
    ids=["taken over", "folder moved away"],
)
def test_an_owner_that_lost_its_lease_ends_and_writes_no_more(folder: ObjectPath, lose: Any, words: str) -> None:
    def work() -> None:
        ledger = Ledger(folder, SweepConfig.model_validate({"name": "x", "space": {"depth": [1, 2]}}))
        write_tables(ledger)
        lose(folder)
        before = sorted(folder.rglob("*"))
        with pytest.raises(OSError, match=words) as raised:
            time.sleep(10)
        assert raised.value.errno == errno.ESTALE
        for write in (
            lambda: write_tables(ledger),
            lambda: mark_stage(folder, "x"),
            lambda: ledger.add(LatencyRecord("a", "b", [])),
        ):
            with pytest.raises(OSError, match=words):
                write()
        assert sorted(folder.rglob("*")) == before
        raise SystemError("as Ray's compiled code may make of it")

    advised, line = translate_storage_errors("advice"), rf"^memory://.*/owner.json: {words}; advice$"
    with pytest.raises(StorageError, match=line), advised, owned(folder):
        work()
    assert (folder / "owner.json").exists() == (lose is write_lease)


def test_an_owner_that_cannot_renew_its_lease_ends(folder: ObjectPath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "LEASE_S", 0.1)

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "no answer")

    def work() -> None:
        monkeypatch.setattr(ObjectPath, "write_bytes", fail)
        time.sleep(10)

    with pytest.raises(OSError, match=r"could not be renewed for 0.1 s: no answer"), owned(folder):
        work()
