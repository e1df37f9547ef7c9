"""Starting a Ray cluster on this machine, for one sweep."""

from __future__ import annotations

import inspect
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from ray import _raylet
from ray._private import ray_constants, services
from ray._private import worker as ray_worker

from lsmha.devices.environment import ALLOCATOR_ENVIRONMENT
from orchestrator.cluster.ports import ports_to_listen_on
from orchestrator.cluster.private_folder import make_token, ray_folder

WORKER_ENVIRONMENT = {**ALLOCATOR_ENVIRONMENT, "RAY_TRAIN_V2_ENABLED": "1", "RAY_CHDIR_TO_TRIAL_DIR": "0"}
LOOPBACK_ENVIRONMENT = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
"""For ranks of one machine: what they tell one another is nobody else's business."""

PATIENCE_S = 600
"""How long each of the cluster's processes may take to start. Ray itself waits half a minute for most, which is not
enough where other programs want every CPU."""

PORTS_OF_AGENTS = (
    "metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port",
)  # fmt: skip


def local_settings(*, dashboard: bool) -> dict[str, Any]:
    """What `ray.init` is given to start a cluster, with Ray's dashboard or without; raises what `ray_folder` and
    `make_token` do."""
    folder = ray_folder()
    make_token(folder.parent)
    return {
        "_temp_dir": str(folder),
        "include_dashboard": dashboard,
        "dashboard_host": "127.0.0.1",
        "_system_config": system_config(dashboard=dashboard),
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
        "agent_register_timeout_ms": 1000 * PATIENCE_S,
        "worker_register_timeout_seconds": PATIENCE_S,
    }


@contextmanager
def starting_here() -> Iterator[None]:
    """What Ray starts in the block is `given_time`, has the workers' environment, and listens on loopback alone, as it
    does on macOS and Windows.

    The last of these is private of Ray: `tests/integration/test_clusters.py` lists the sockets of a local sweep.
    """
    variables = {**WORKER_ENVIRONMENT, **LOOPBACK_ENVIRONMENT, ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0"}
    constants = {"ENABLE_RAY_CLUSTER": False}  # read from the environment when Ray was imported
    with _replaced(os.environ, variables), _replaced(vars(ray_constants), constants), given_time():
        yield


@contextmanager
def given_time() -> Iterator[None]:
    """What Ray starts in the block is waited for, however long other programs keep it from starting.

    This is private of Ray: `tests/integration/test_clusters.py` starts a cluster that is slow to start.
    """
    functions = {
        "get_node": _patient(services.get_node),
        "start_raylet": _with_ports_of_agents(services.start_raylet),
    }
    with (
        _replaced(os.environ, {"RAY_gcs_server_port_wait_time_s": str(PATIENCE_S)}),
        _replaced(vars(ray_constants), {"RAY_DASHBOARD_STARTUP_TIMEOUT_S": PATIENCE_S}),
        _replaced(vars(services), functions),
    ):
        yield


@contextmanager
def _replaced(mapping: MutableMapping[str, Any], entries: Mapping[str, Any]) -> Iterator[None]:
    """The mapping has the entries in the block, and afterwards what it had before."""
    before = {name: mapping[name] for name in entries if name in mapping}
    mapping.update(entries)
    try:
        yield
    finally:
        for name in entries:
            del mapping[name]
        mapping.update(before)


def _with_ports_of_agents(start_raylet: Callable[..., Any]) -> Callable[..., Any]:
    """Ray's start of a node, whose agents are told their ports: for ports of their own choice it waits 15 s at most."""

    def start(*arguments: Any, **options: Any) -> Any:
        given = inspect.signature(start_raylet).bind(*arguments, **options)
        ports = dict(zip(PORTS_OF_AGENTS, ports_to_listen_on(len(PORTS_OF_AGENTS)), strict=True))
        given.arguments.update(ports)
        # One of them Ray tells the agent alone; the node waits for a file that has it. Older Ray has no such files.
        if (persist_port := getattr(_raylet, "persist_port", None)) is not None:
            name = "dashboard_agent_listen_port"
            persist_port(given.arguments["session_dir"], given.arguments["node_id"], name, ports[name])
        return start_raylet(*given.args, **given.kwargs)

    return start


def _patient(get_node: Callable[..., Any]) -> Callable[..., Any]:
    """Ray's question for the node that it has started, asked for as long as that node may yet answer.

    The function raises ChildProcessError: The node has ended, or there is no answer for too long.
    """

    def ask(*arguments: Any, **options: Any) -> Any:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                return get_node(*arguments, **options)
            except RuntimeError:
                if not _raylet_lives() or time.monotonic() > deadline:
                    raise ChildProcessError(
                        "Ray's raylet did not start, as happens where other programs keep every CPU busy; "
                        f"its log is {_session_folder() / 'logs' / 'raylet.out'}"
                    ) from None
                time.sleep(0.1)

    return ask


def _session_folder() -> Path:
    """Of this process' cluster; other sweeps of the same user may have theirs beside it."""
    sessions = sorted(ray_folder().glob(f"session_*_{os.getpid()}"))
    return sessions[-1] if sessions else ray_folder() / "session_latest"


def _raylet_lives() -> bool:
    with suppress(psutil.NoSuchProcess):  # some other child, just now
        return any(
            child.name() == "raylet" and child.status() != psutil.STATUS_ZOMBIE for child in psutil.Process().children()
        )
    return True


@contextmanager
def children_deaf_to_signals() -> Iterator[None]:
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


def kill_at_shutdown() -> None:
    """Have `ray.shutdown` kill the processes of a local cluster, instead of waiting a second for each of seven to heed
    a SIGTERM to which they are deaf.

    This is private of Ray; where it moves, a sweep ends some seconds later.
    """
    node: Any = getattr(ray_worker, "_global_node", None)
    kill = getattr(node, "kill_all_processes", None)
    if kill is not None:
        node.kill_all_processes = lambda **_: kill(check_alive=False, allow_graceful=False)
