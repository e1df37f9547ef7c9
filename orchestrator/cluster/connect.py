"""Joining a Ray cluster, or starting a local one."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants
from ray._private import worker as ray_worker
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from lsmha.devices.environment import ALLOCATOR_ENVIRONMENT
from orchestrator.cluster.capacity import Capacity, capacity_of_cluster
from orchestrator.cluster.guard import cluster_guard
from orchestrator.cluster.loss import answers
from orchestrator.cluster.private_folder import make_token, ray_folder
from orchestrator.errors import UserError

WORKER_ENVIRONMENT = {**ALLOCATOR_ENVIRONMENT, "RAY_TRAIN_V2_ENABLED": "1", "RAY_CHDIR_TO_TRIAL_DIR": "0"}
LOOPBACK_ENVIRONMENT = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
"""For ranks of one machine: what they tell one another is nobody else's business."""


@dataclass(frozen=True)
class ClusterChoice:
    """Which cluster a command works on."""

    address: str | None = None
    """Of one to join; by default RAY_ADDRESS, else one started by `ray start --head` here, else a new local one."""
    dashboard: bool = False
    """Start Ray's dashboard with a local one."""


@contextmanager
def connect(cluster: ClusterChoice) -> Iterator[Capacity]:
    """Join a cluster, or start one.

    The job leaves the cluster when the block ends; a cluster started here stops.

    Raises:
        UserError: There is no cluster at the address.
    """
    wanted = _address(cluster.address)
    is_own = wanted == "local"
    own = _settings_of_own(cluster) if is_own else {}
    try:
        with _children_deaf_to_signals(), _cluster_of_own() if is_own else _standard_error_hushed():
            ray.init(
                address=wanted,
                # On a cluster of its own workers have it from the start: those that wait there already can be taken.
                runtime_env=None if is_own else {"env_vars": WORKER_ENVIRONMENT},
                log_to_driver=False,
                logging_level=logging.ERROR,
                configure_logging=True,
                **own,
            )
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        raise UserError(f"--address: no Ray cluster can be joined at {wanted!r}: {_reason(error, wanted)}") from None
    with cluster_guard() if is_own else nullcontext():
        try:
            yield capacity_of_cluster()
        finally:
            if is_own:
                _kill_at_shutdown()
            ray.shutdown()


def _settings_of_own(cluster: ClusterChoice) -> dict[str, Any]:
    """What a cluster is started with; raises what `ray_folder` and `make_token` do."""
    folder = ray_folder()
    make_token(folder.parent)
    return {
        "_temp_dir": str(folder),
        "include_dashboard": cluster.dashboard,
        "dashboard_host": "127.0.0.1",
        "_system_config": system_config(dashboard=cluster.dashboard),
    }


def system_config(*, dashboard: bool) -> dict[str, Any]:
    """What Ray's own processes do differently on a cluster that is started for one sweep."""
    return {
        # Ray ends worker processes that were idle for a second; theirs is all that makes the next trial start at once.
        "idle_worker_killing_time_threshold_ms": 600_000,
        # Ray's own 15 has them starve as soon as other programs of the machine want the CPUs, too.
        **({} if "RAY_worker_niceness" in os.environ else {"worker_niceness": 0}),
        # The metrics port asks for no token, so other users of the machine could read it.
        "enable_metrics_collection": dashboard,
    }


def _reason(error: Exception, wanted: str) -> str:
    """Why Ray did not let this process in, in one line."""
    if isinstance(error, ConnectionError) and wanted != "local":
        return "it answers, but lets only those in who have its token (RAY_AUTH_MODE=token, ~/.ray/auth_token)"
    if "Version mismatch" in str(error):  # both lists of versions are what one needs
        return " ".join(str(error).split())
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextmanager
def _cluster_of_own() -> Iterator[None]:
    """What Ray starts in the block has the workers' environment, and listens on loopback alone, as it does on macOS and
    Windows.

    The latter is private of Ray: `tests/integration/test_clusters.py` lists the sockets of a local sweep.
    """
    variables = WORKER_ENVIRONMENT | LOOPBACK_ENVIRONMENT | {ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0"}
    environment, constants = dict(os.environ), vars(ray_constants)
    setting = constants["ENABLE_RAY_CLUSTER"]
    os.environ.update(variables)
    constants["ENABLE_RAY_CLUSTER"] = False  # read from the environment when Ray was imported
    try:
        yield
    finally:
        constants["ENABLE_RAY_CLUSTER"] = setting
        for name in variables:
            del os.environ[name]
            if name in environment:
                os.environ[name] = environment[name]


@contextmanager
def _standard_error_hushed() -> Iterator[None]:
    """Discard what Ray's compiled code says of every second in which a cluster does not let it in."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def on_this_node() -> NodeAffinitySchedulingStrategy:
    """Where to put what must live as long as the driver: on its node, which no autoscaler or spot market takes away."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


@contextmanager
def _children_deaf_to_signals() -> Iterator[None]:
    """Processes started in the block take no SIGTERM and no SIGHUP, as Ray's take no SIGINT; `ray.shutdown` ends them
    all the same.

    Job schedulers and terminals signal the whole process group. A local cluster that ends before its driver leaves that
    driver waiting, in compiled code, for replies that never come.
    """
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def _kill_at_shutdown() -> None:
    """Have `ray.shutdown` kill the processes of a local cluster, instead of waiting a second for each of seven to heed
    a SIGTERM to which they are deaf.

    This is private of Ray; where it moves, a sweep ends some seconds later.
    """
    node: Any = getattr(ray_worker, "_global_node", None)
    kill = getattr(node, "kill_all_processes", None)
    if kill is not None:
        node.kill_all_processes = lambda **_: kill(check_alive=False, allow_graceful=False)


def _address(asked: str | None) -> str:
    """Where to join a cluster, or `local` to start one.

    Raises:
        UserError: Nothing answers at the address that was asked for.
    """
    setting, wanted = "--address", asked
    if not wanted:
        setting, wanted = "RAY_ADDRESS", os.environ.get("RAY_ADDRESS")
    if not wanted:
        return _running_here() or "local"
    if wanted == "auto":
        # Ray's own search would find the private cluster of another sweep, too, and die with that.
        if (found := _running_here()) is None:
            raise UserError(
                f"{setting}: auto needs a Ray cluster that `ray start --head` started here, but none answers"
            )
        return found
    if wanted != "local" and not answers(wanted):
        raise UserError(f"{setting}: must be host:port of a running Ray cluster, but nothing answers at {wanted!r}")
    return wanted


def _running_here() -> str | None:
    """Address of a cluster that `ray start --head` started on this machine, if it still answers.

    Ray leaves the address file behind when a head crashes, and then waits for that head for a long time.
    """
    places = (os.environ.get("RAY_TMPDIR"), os.environ.get("TMPDIR"), "/tmp")  # in which Ray's own command looks
    for place in dict.fromkeys(place for place in places if place):
        try:
            address = (Path(place) / "ray" / "ray_current_cluster").read_text().strip()
        except (OSError, ValueError):
            continue
        if address and answers(address):
            return address
    return None
