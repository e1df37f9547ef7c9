"""Joining a cluster that `ray start` started: by option, by environment, by finding it; and what is no cluster."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import psutil
import pytest
from background import PATIENCE_S, running, wait_for
from running_sweep import SWEEP, RunningSweep

from orchestrator.cluster.ports import ports_to_listen_on

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
SpaceFile = Callable[..., Path]


NO_TOKEN = {"RAY_AUTH_MODE": "disabled"}
"""Cluster and sweeps without a token: which one a machine has on file is none of these tests' business."""


@pytest.fixture(scope="module")
def head() -> Iterator[dict[str, str]]:
    """A cluster of 3 CPUs: its address and its folder for temporary files, where the address is on file."""
    with started(NO_TOKEN) as head:
        yield head


@contextmanager
def started(environment: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """A cluster that runs in the foreground of its own process: `ray stop` would stop every cluster of this machine."""
    folder = tempfile.mkdtemp(prefix="r")  # short: Ray's socket paths in it are limited to 107 bytes
    address = f"127.0.0.1:{ports_to_listen_on(1)[0]}"
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=3",
               "--node-ip-address=127.0.0.1", f"--port={address.split(':')[1]}", "--include-dashboard=false",
               "--disable-usage-stats"]  # fmt: skip
    try:
        with running(command, Path(folder) / "head.log", env={**environment, "RAY_TMPDIR": folder}) as process:
            wait_for((Path(folder) / "ray" / "ray_current_cluster").exists, "the head")
            yield {"address": address, "folder": folder, "process": str(process.pid)}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_a_running_cluster_is_found_and_joined(
    head: dict[str, str], alone: Cli, space_file: SpaceFile, tmp_path: Path
) -> None:
    result = alone("run", space_file(tmp_path), "--dry-run", env=NO_TOKEN | {"RAY_TMPDIR": head["folder"]})
    assert result.returncode == 0, result.stderr
    assert "cluster: 3 CPU(s) and 0 GPU(s) on 1 node(s)" in result.stdout


def test_another_version_of_ray_is_told_with_both(head: dict[str, str], space_file: SpaceFile, tmp_path: Path) -> None:
    script = (
        "import sys, ray\n"
        "ray.__version__ = '2.1.0'\n"
        "from orchestrator.cli import main\n"
        "sys.argv = ['lsmha-sweep', 'run', *sys.argv[1:]]\n"
        "main()"
    )
    arguments = [space_file(tmp_path), "--dry-run", "--address", head["address"]]
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        env={**os.environ, **NO_TOKEN},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: --address: ")
    assert "2.1.0" in line
    assert version("ray") in line


def test_a_sweep_leaves_the_cluster_that_it_joined_running(
    head: dict[str, str], alone: Cli, space_file: SpaceFile, tmp_path: Path
) -> None:
    spec = space_file(tmp_path, space={"num_heads": [4]}, finalists={"max_finalists": 0})
    for how in (["--out", tmp_path / "run"], ["--dry-run"]):
        result = alone("run", spec, *how, "--address", head["address"], env=NO_TOKEN)
        assert result.returncode == 0, result.stdout + result.stderr
    assert (tmp_path / "run" / "summary.json").exists()


def test_where_no_cluster_is(alone: Cli, space_file: SpaceFile, tmp_path: Path) -> None:
    address = "127.0.0.1:1"
    result = alone("run", space_file(tmp_path), "--out", tmp_path / "run", "--address", address, env=NO_TOKEN)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: --address: ")
    assert address in line
    assert not (tmp_path / "run").exists()


def test_why_a_cluster_that_answers_lets_nobody_in_is_told(alone: Cli, space_file: SpaceFile, tmp_path: Path) -> None:
    theirs, wrong = ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": digit * 64} for digit in "01")
    hurried = {"RAY_gcs_server_request_timeout_seconds": "3"}
    with started(theirs) as head:

        def refused(token: dict[str, str]) -> str:
            spec, run = space_file(tmp_path), tmp_path / "run"
            result = alone("run", spec, "--out", run, "--address", head["address"], env={**token, **hurried})
            assert result.returncode == 2
            assert not run.exists()
            (line,) = result.stderr.splitlines()
            return line.removeprefix(f"error: --address: no Ray cluster can be joined at {head['address']!r}: ")

        assert refused(wrong).startswith("it answers, but lets only those in who have its token")
        foreground = psutil.Process(int(head["process"]))
        foreground.suspend()  # it would end the others, too
        try:
            for child in foreground.children():
                if child.name() == "raylet":
                    child.kill()
            assert refused(theirs) == "it answers, but none of its nodes is alive"
        finally:
            foreground.resume()


def test_a_local_sweep_listens_on_loopback_alone(tmp_path: Path) -> None:
    resources = {"workers_per_trial": 2, "cpus_per_trial": 2}
    sweep = RunningSweep(tmp_path, resources=resources, train={**SWEEP["train"], "epochs": 10_000})
    try:
        sweep.wait_until(lambda: list((sweep.folder / "checkpoints").glob("t*.pt")))
        listening = {
            (_address(listener.laddr.ip), psutil.Process(process).name())
            for process in sweep.processes()
            for listener in psutil.Process(process).net_connections("inet")
            if listener.status == psutil.CONN_LISTEN
        }
    finally:
        for process in sweep.processes():
            os.kill(process, signal.SIGKILL)
        sweep.process.wait(PATIENCE_S)
    assert {name for _, name in listening} >= {"gcs_server", "raylet"}
    # The store at which torch's ranks meet cannot be told where to listen (docs/threats.md).
    assert {name for address, name in listening if not address.is_loopback} == {"ray::RayTrainWorker"}


SLOW = """
import sys, time
if any(argument.endswith(("dashboard/agent.py", "runtime_env/agent/main.py")) for argument in sys.orig_argv):
    time.sleep(20)
"""


def test_a_local_cluster_starts_on_a_busy_machine_and_its_workers_have_the_priority_of_whoever_started_it(
    tmp_path: Path,
) -> None:
    (tmp_path / "sitecustomize.py").write_text(SLOW)  # Ray ends a node whose agents do not tell it their ports in 15 s
    script = (
        "import os, ray\n"
        "from orchestrator.cluster.connect import ClusterChoice, connect\n"
        "os.nice(1)\n"
        "with connect(ClusterChoice('local')):\n"
        "    print(os.nice(0), ray.get(ray.remote(lambda: os.nice(0)).remote()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **NO_TOKEN, "PYTHONPATH": str(tmp_path)},
        capture_output=True, text=True, timeout=PATIENCE_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    of_driver, of_worker = map(int, done.stdout.split())
    assert of_driver == of_worker > 0


def _address(text: str) -> IPv4Address | IPv6Address:
    """An address; of IPv4 written as one of IPv6, that of IPv4."""
    address = ip_address(text)
    return getattr(address, "ipv4_mapped", None) or address
