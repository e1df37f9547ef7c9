"""Fixtures of all tiers: a Ray cluster for sweeps to join, the command line as a user runs it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
from background import PATIENCE_S
from repository import ROOT
from ruamel.yaml import YAML
from warm_workers.nursery import warm_workers
from xdist.scheduler import LoadScopeScheduling

TINY = {
    "name": "tiny",
    "data": {"name": "digits", "max_train_images": 200},
    "model": {"embed_dim": 16, "mlp_ratio": 1.0, "attention": "materialized"},
    "train": {"epochs": 1, "batch_size": 50},
    "space": {"num_heads": [1, 4], "depth": [1, 2]},
    "search": {"num_trials": 4, "suggestion_batch": 2},
    "latency": {"min_iterations": 3, "max_seconds": 0.05, "warmup_s": 0.0, "rounds": 1},
    "finalists": {"max_finalists": 2, "seeds": [0]},
}
"""A sweep of seconds: four configurations, of which at most two are finalists."""

# Whoever runs the tests by nohup has it ignored, and so would all that they start.
signal.signal(signal.SIGHUP, signal.SIG_DFL)

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
SpaceFile = Callable[..., Path]


def run_cli(
    *arguments: Any, env: Mapping[str, str | None] | None = None, timeout: float = PATIENCE_S
) -> subprocess.CompletedProcess[str]:
    """Run `lsmha-sweep` in a process of its own; `env` adds to the environment, or removes where None."""
    variables = {**os.environ, "RAY_ADDRESS": None, **(env or {})}
    return subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", *map(str, arguments)],
        env={name: value for name, value in variables.items() if value is not None},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


class _ModulesThatShare(LoadScopeScheduling):
    """Keeps in one process the tests of a module that makes something once; all others go wherever one is free."""

    def _split_scope(self, nodeid: str) -> str:
        module = nodeid.partition("::")[0]
        return module if 'scope="module"' in (ROOT / module).read_text(encoding="utf-8") else nodeid


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """For `--dist loadscope`; `loadgroup` would do if pytest 9.2 let pytest-xdist 3.8 rename tests."""
    return _ModulesThatShare(config, log) if config.getvalue("dist") == "loadscope" else None


@pytest.fixture(scope="session")
def alone() -> Cli:
    """`lsmha-sweep` with no cluster to join, unless `env` or an option names one."""
    return run_cli


@pytest.fixture
def cli(address: str, tmp_path_factory: pytest.TempPathFactory) -> Cli:
    """`lsmha-sweep` with the session's cluster to join, forked where everything is imported already."""
    from running_sweep import Session  # here, because unit tests do without it

    def run(*arguments: Any) -> subprocess.CompletedProcess[str]:
        ended = Session(*arguments, log=tmp_path_factory.mktemp("cli") / "log", address=address).wait()
        return subprocess.CompletedProcess(arguments, ended.code, ended.output, ended.errors)

    return run


@pytest.fixture(scope="session")
def space_file() -> SpaceFile:
    """Writes TINY, with the sections given replaced, as a sweep's YAML into a folder."""

    def write(folder: Path, **sections: Any) -> Path:
        path = folder / "space.yaml"
        with path.open("w") as file:
            YAML(typ="safe", pure=True).dump({**TINY, **sections}, file)
        return path

    return write


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Variables for processes that start clusters: their workers start in a third of the time."""
    with warm_workers(tmp_path_factory.mktemp("warm")) as variables:
        yield variables


@pytest.fixture(scope="session")
def address(warm: dict[str, str]) -> Iterator[str]:
    """Address of a cluster of 2 CPUs that this process keeps for all tests of the session."""
    from orchestrator.cluster.local_cluster import given_time, system_config  # set what Ray reads when imported

    import ray  # isort: skip

    # Not all of the environment is put back: Ray leaves there how its cluster is joined.
    with pytest.MonkeyPatch.context() as patch, given_time():
        for name, value in warm.items():
            patch.setenv(name, value)
        context: Any = ray.init(
            address="local", num_cpus=2, num_gpus=0, include_dashboard=False, log_to_driver=False,
            _system_config=system_config(dashboard=False),
        )  # fmt: skip
    yield context.address_info["gcs_address"]
    ray.shutdown()


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Leaves annotations unchecked: for what they forbid and a function refuses by itself; checking draws at random."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
