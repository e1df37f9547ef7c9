"""Storage that is full, read-only or gone in the middle of a sweep."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from broken_storage import fill, mount, mounted
from running_sweep import Reference, Sweep, assert_nothing_lost, assert_refused


@contextmanager
def full(run: Path) -> Iterator[None]:
    filler = run.with_name("filler")
    fill(filler)
    yield
    filler.unlink()


@contextmanager
def read_only(run: Path) -> Iterator[None]:
    # Over the folder: the file system under it has files that are open for writing.
    with mounted(run, "--bind", run):
        mount("-o", "remount,bind,ro", run)
        yield


@contextmanager
def deleted(run: Path) -> Iterator[None]:
    away = run.with_name("away")
    run.rename(away)
    yield
    assert not run.exists(), "a run folder that was moved away was begun anew"
    away.rename(run)


@pytest.mark.parametrize(
    ("broken", "words", "code_of_resume"),
    [
        (full, "No space left on device", 3),
        (read_only, "Read-only file system", 3),
        (deleted, "No such file or directory", 2),
    ],
    ids=["full", "read-only", "deleted"],
)
def test_a_sweep_ends_on_broken_storage_and_goes_on_when_it_is_mended(
    broken: Callable[[Path], AbstractContextManager[None]],
    words: str,
    code_of_resume: int,
    address: str,
    reference: Reference,
    tmp_path: Path,
) -> None:
    storage = tmp_path / "storage"
    storage.mkdir()
    with mounted(storage, "-t", "tmpfs", "-o", "size=4m", "tmpfs"):
        sweep = Sweep(tmp_path, address, run=storage / "run")
        session = sweep.start()
        session.wait_until(lambda: len(sweep.records()) >= 2)
        with broken(sweep.run):
            assert_refused(session.wait(), 3, words, f"lsmha-sweep resume {sweep.run}")
            assert_refused(sweep.do(*sweep.again("resume")), code_of_resume, str(sweep.run))
        kept = sweep.records()
        assert 2 <= len(kept) < 8
        sweep.complete(*sweep.again("resume"))
        assert {name: sweep.records()[name] for name in kept} == kept
        assert_nothing_lost(sweep.run, reference.run)
