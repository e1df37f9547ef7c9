"""The sweep that faults strike: as it is when none does, and as a test starts it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from running_sweep import WITH_FINALISTS, Reference, Sweep


@pytest.fixture
def sweep(tmp_path: Path, address: str) -> Callable[..., Sweep]:
    """Makes a sweep of `running_sweep.SWEEP`, with the sections given replaced, on the session's cluster."""
    return lambda **sections: Sweep(tmp_path, address, **sections)


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory, address: str) -> Reference:
    """The search undisturbed."""
    return _undisturbed(tmp_path_factory.mktemp("reference"), address)


@pytest.fixture(scope="session")
def reference_with_finalists(reference: Reference, tmp_path_factory: pytest.TempPathFactory, address: str) -> Reference:
    """The same, with two finalists, their analyses and committees; from there on undisturbed, too."""
    return _undisturbed(tmp_path_factory.mktemp("finalists"), address, after=reference, **WITH_FINALISTS)


def _undisturbed(folder: Path, address: str, *, after: Reference | None = None, **sections: Any) -> Reference:
    sweep = Sweep(folder, address, **sections)
    if after is not None:
        sweep.copy_of(after.run)
    started = time.monotonic()
    sweep.complete()
    return Reference(sweep.run, time.monotonic() - started)
