"""Sweeps in surroundings that are real somewhere: for a user of no name, behind proxies, on a few CPUs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pandas as pd
import pytest
from background import PATIENCE_S

SpaceFile = Callable[..., Path]
SMALL = {"search": {"num_trials": 2}, "finalists": {"max_finalists": 0}}
NOBODY = "54321"


def swept(spec: Path, environment: dict[str, str], *before: str) -> str:
    """What a small sweep says, into `run` beside its file; it ends well."""
    folder = spec.parent / "run"
    arguments = ["run", str(spec), "--out", str(folder), "--address", "local"]
    told = subprocess.run(
        [*before, sys.executable, "-m", "orchestrator.cli", *arguments],
        env=environment,
        cwd=spec.parent,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=PATIENCE_S,
        check=False,
    )
    said = told.stdout.decode(errors="replace")
    assert told.returncode == 0, said
    assert "Traceback" not in said
    assert len(pd.read_parquet(folder / "trials.parquet")) == 2
    return said


def have(*programs: str) -> bool:
    return os.getuid() == 0 and all(shutil.which(program) for program in programs)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that others get to; those of pytest are closed to them."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.mark.skipif(not have("setpriv", "unshare"), reason="needs root, setpriv and unshare")
def test_a_user_of_no_name_on_a_host_of_no_address_behind_proxies(open_folder: Path, space_file: SpaceFile) -> None:
    """As pods of OpenShift, `docker run --user`, and clusters of universities are."""
    os.chown(open_folder, int(NOBODY), int(NOBODY))
    environment = {
        "PATH": os.environ["PATH"],
        "http_proxy": "http://127.0.0.1:9",
        "https_proxy": "http://127.0.0.1:9",
        "all_proxy": "http://127.0.0.1:9",
        "OMP_NUM_THREADS": "64",
        "FORCE_COLOR": "1",
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
    }
    said = swept(space_file(open_folder, **SMALL), environment, *nameless_host(), *nobody())
    assert said.isascii()
    assert not list(open_folder.glob("~*"))


def nameless_host() -> Sequence[str]:
    return ("unshare", "--uts", "sh", "-c", 'hostname no-such-host.invalid && exec "$@"', "sh")


def nobody() -> Sequence[str]:
    # It may read everything, as the interpreter may lie in a home; what it may write is all that counts.
    caps = "+dac_read_search"
    ids = (f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
    return ("setpriv", *ids, f"--inh-caps={caps}", f"--ambient-caps={caps}")


@pytest.mark.skipif(not have("unshare", "mount"), reason="needs root, unshare and mount")
def test_little_shared_memory_and_a_home_that_cannot_be_written(tmp_path: Path, space_file: SpaceFile) -> None:
    """As containers have by default, on one CPU of several."""
    mounts = 'mount -t tmpfs -o size=64m tmpfs /dev/shm && mount -t tmpfs -o ro,size=4k tmpfs "$HOME" && exec "$@"'
    home = tmp_path / "home"
    home.mkdir()
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "LANG": "C.UTF-8", "COLUMNS": "120"}
    one_cpu = ("taskset", "-c", str(min(os.sched_getaffinity(0))))
    said = swept(space_file(tmp_path, **SMALL), environment, "unshare", "--mount", "sh", "-c", mounts, "sh", *one_cpu)
    assert "matplotlib" not in said
    assert list(home.iterdir()) == []
