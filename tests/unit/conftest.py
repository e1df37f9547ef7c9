"""Fixtures of several test files."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from snapshots import snapshot
from tiny_data import tiny_dataset

from lsmha.data import Dataset
from orchestrator.cli import main


def pytest_collection_finish() -> None:
    # What is loaded by now stays, and some tests collect garbage: each time, they would look through all of it.
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Computes on one thread: on images this small, more of them only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny() -> Dataset:
    return tiny_dataset()


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that must be refused without a trace and before Ray starts, and returns its one line."""

    def run(*arguments: Any) -> str:
        before = snapshot(tmp_path)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("ray.init", lambda **_: pytest.fail("Ray was started"))
        monkeypatch.setattr("sys.argv", ["lsmha-sweep", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit:
            main()
        output = capsys.readouterr()
        assert exit.value.code == 2, output.err
        (line,) = output.err.splitlines()
        assert "Traceback" not in output.out + output.err
        assert snapshot(tmp_path) == before
        return line

    return run
