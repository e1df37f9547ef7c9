"""How every command is set up and taken down: in one order, and once, however it ends."""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cluster.capacity import Capacity
from orchestrator.cluster.connect import ClusterChoice
from orchestrator.commands import session as session_module
from orchestrator.commands.session import Ending, session
from orchestrator.errors import Interrupted, StorageError, UserError
from orchestrator.run_folder.ownership import has_owner
from orchestrator.terminal import QUIET

TWO_CPUS = Capacity(((2, 0.0),))
AGAIN = "the same command goes on"


@pytest.fixture
def happened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was set up and taken down, in order; no Ray is started."""
    happened: list[str] = []

    def noted(name: str, value: Any = None) -> Any:
        @contextmanager
        def manager(*_: object, **__: object) -> Iterator[Any]:
            happened.append(name)
            try:
                yield value
            finally:
                happened.append(f"/{name}")

        return manager

    monkeypatch.setattr(session_module, "connect", noted("cluster", TWO_CPUS))
    monkeypatch.setattr(session_module, "check_shared", lambda _: happened.append("shared"))
    monkeypatch.setattr(session_module, "owned", _after(session_module.owned, noted("owned")))
    interrupts = session_module.interrupts_as_exceptions
    monkeypatch.setattr(session_module, "interrupts_as_exceptions", _after(interrupts, noted("signals")))
    monkeypatch.setattr(session_module, "exit_on_cluster_loss", noted("cluster loss"))
    monkeypatch.setattr(session_module, "show_progress", _after(session_module.show_progress, noted("progress")))
    return happened


def _after(real: Any, noted: Any) -> Any:
    @contextmanager
    def manager(*arguments: Any, **named: Any) -> Iterator[Any]:
        with noted(), real(*arguments, **named) as value:
            yield value

    return manager


def begin(folder: Path | None, *, cluster: ClusterChoice | None = ClusterChoice(), **how: Any) -> Any:  # noqa: B008
    return session(folder, QUIET, cluster=cluster, again=AGAIN, **how)


def test_the_parts_come_in_one_order_and_go_in_the_reverse_one(tmp_path: Path, happened: list[str]) -> None:
    def fits(capacity: Capacity) -> None:
        happened.append(f"fits {capacity.cpus}")

    with begin(tmp_path / "run", fits=fits) as begun:
        begun.at_end = lambda ending: happened.append(f"{ending.how}, owned: {has_owner(tmp_path / 'run')}")
        happened.append("work")
    up = ["cluster", "fits 2", "shared", "owned", "signals", "cluster loss", "progress"]
    down = ["/progress", "/cluster loss", "/signals", "complete, owned: True", "/owned", "/cluster"]
    assert happened == [*up, "work", *down]


def test_without_a_cluster_nothing_of_one_is_set_up(tmp_path: Path, happened: list[str]) -> None:
    with begin(tmp_path, cluster=None) as begun:
        assert begun.capacity.cpus == 0
        assert has_owner(tmp_path)
    assert happened == ["owned", "signals", "progress", "/progress", "/signals", "/owned"]


def test_without_a_folder_none_is_owned(happened: list[str]) -> None:
    with begin(None):
        pass
    assert not {"owned", "shared"} & set(happened)


@pytest.mark.parametrize(
    ("error", "raised", "how"),
    [
        (RuntimeError("a fault"), RuntimeError, "crashed"),
        (UserError("depth: must be"), UserError, "crashed"),
        (Interrupted(signal.SIGTERM), Interrupted, "interrupted"),
        (OSError(errno.ENOSPC, "No space left on device", "/x"), StorageError, None),
    ],
    ids=["fault", "refused", "interrupted", "storage"],
)
def test_the_work_ends_once_in_the_folder_that_is_still_owned(
    tmp_path: Path, happened: list[str], error: Exception, raised: type[Exception], how: str | None
) -> None:
    endings: list[tuple[Ending, bool]] = []

    def work() -> None:
        with begin(tmp_path) as begun:
            begun.at_end = lambda ending: endings.append((ending, has_owner(tmp_path)))
            raise error

    with pytest.raises(raised) as found:
        work()
    assert [(ending.how, owned) for ending, owned in endings] == ([(how, True)] if how else [])
    assert not has_owner(tmp_path)
    if raised is StorageError:
        assert str(found.value) == f"/x: No space left on device; nothing recorded is lost: once mended, {AGAIN}"


def test_a_signal_interrupts_the_work(tmp_path: Path, happened: list[str]) -> None:
    endings: list[Ending] = []

    def work() -> None:
        with begin(tmp_path) as begun:
            begun.at_end = endings.append
            os.kill(os.getpid(), signal.SIGTERM)
            threading.Event().wait(10)

    with pytest.raises(Interrupted):
        work()
    (ending,) = endings
    assert ending.interrupted is not None
    assert ending.interrupted.exit_code == 128 + signal.SIGTERM


def test_a_lost_cluster_ends_the_work_from_another_thread_and_only_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, happened: list[str]
) -> None:
    lost: list[Any] = []

    @contextmanager
    def exit_on_cluster_loss(advice: str, *, when_lost: Any) -> Iterator[None]:
        assert advice == f"nothing recorded is lost: on a new one, {AGAIN}"
        lost.append(when_lost)
        yield

    monkeypatch.setattr(session_module, "exit_on_cluster_loss", exit_on_cluster_loss)
    endings: list[str] = []
    with begin(tmp_path) as begun:
        begun.at_end = lambda ending: endings.append(ending.how)
        thread = threading.Thread(target=lost[0])
        thread.start()
        thread.join()
    assert endings == ["crashed"]


@pytest.mark.parametrize("refusal", ["too small", "not shared"])
def test_what_cannot_work_leaves_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, happened: list[str], refusal: str
) -> None:
    def refuse(*_: object) -> None:
        raise UserError(refusal)

    if refusal == "not shared":
        monkeypatch.setattr(session_module, "check_shared", refuse)
    fits = refuse if refusal == "too small" else lambda _: None
    with pytest.raises(UserError, match=refusal), begin(tmp_path / "run", fits=fits):
        pytest.fail("it began")
    assert list(tmp_path.iterdir()) == []
    assert happened[-1] == "/cluster"


def test_a_folder_that_cannot_be_made_is_the_users_to_mend(tmp_path: Path, happened: list[str]) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--out: .*file/run cannot be written: Not a directory"):
        begin(tmp_path / "file" / "run").__enter__()
