"""Joining a Ray cluster, or starting a local one."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from lsmha.devices.environment import ALLOCATOR_ENVIRONMENT
from orchestrator.cluster.capacity import Capacity, capacity_of_cluster
from orchestrator.cluster.guard import cluster_guard
from orchestrator.cluster.loss import answers
from orchestrator.errors import UserError

WORKER_ENVIRONMENT = {**ALLOCATOR_ENVIRONMENT, "RAY_TRAIN_V2_ENABLED": "1", "RAY_CHDIR_TO_TRIAL_DIR": "0"}


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
    wanted = cluster.address or os.environ.get("RAY_ADDRESS") or _running_here() or "local"
    if wanted not in ("local", "auto") and not answers(wanted):
        raise UserError(f"--address: must be host:port of a running Ray cluster, but nothing answers at {wanted!r}")
    local: dict[str, Any] = {
        **_private_folder(),
        "include_dashboard": cluster.dashboard,
        "dashboard_host": "127.0.0.1",
        # Ray ends worker processes that were idle for a second; theirs is all that makes the next trial start at once.
        "_system_config": {
            "idle_worker_killing_time_threshold_ms": 600_000,
            # Ray's own 15 has them starve as soon as other programs of the machine want the CPUs, too.
            **({} if "RAY_worker_niceness" in os.environ else {"worker_niceness": 0}),
            # The metrics port is on every interface and asks for no token.
            "enable_metrics_collection": cluster.dashboard,
        },
    }
    if wanted == "local":
        _make_private_token()
    try:
        with _children_deaf_to_sigterm(), nullcontext() if wanted == "local" else _standard_error_hushed():
            ray.init(
                address=wanted,
                runtime_env={"env_vars": WORKER_ENVIRONMENT},
                log_to_driver=False,
                logging_level=logging.ERROR,
                configure_logging=True,
                **(local if wanted == "local" else {}),
            )
    except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if isinstance(error, ConnectionError) and wanted != "local":
            reason = "it answers, but lets only those in who have its token (RAY_AUTH_MODE=token, ~/.ray/auth_token)"
        raise UserError(f"--address: no Ray cluster can be joined at {wanted!r}: {reason}") from None
    with cluster_guard() if wanted == "local" else nullcontext():
        try:
            yield capacity_of_cluster()
        finally:
            ray.shutdown()


def _private_folder() -> dict[str, str]:
    """Where a local cluster keeps sockets and logs: Ray lets all users into its own folders, so they get a parent."""
    if "RAY_TMPDIR" in os.environ:
        return {}
    parent = Path(tempfile.gettempdir()) / f"lsmha-{os.getuid()}"
    parent.mkdir(mode=0o700, exist_ok=True)
    if parent.is_symlink() or parent.stat().st_uid != os.getuid():
        parent = Path(tempfile.mkdtemp(prefix="lsmha-"))  # somebody else was there first
    parent.chmod(0o700)
    return {"_temp_dir": str(parent / "ray")}


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


def _make_private_token() -> None:
    """Have the token that local clusters ask for before Ray does, which lets other users read its own."""
    if os.environ.get("RAY_AUTH_MODE") == "disabled" or "RAY_AUTH_TOKEN" in os.environ:
        return
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        if file.stat().st_uid == os.getuid():
            file.chmod(0o600)
        return
    with open(descriptor, "w") as opened:
        opened.write(secrets.token_hex(32))


def on_this_node() -> NodeAffinitySchedulingStrategy:
    """Where to put what must live as long as the driver: on its node, which no autoscaler or spot market takes away."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


@contextmanager
def _children_deaf_to_sigterm() -> Iterator[None]:
    """Processes started in the block take no SIGTERM, as Ray's take no SIGINT; `ray.shutdown` ends them all the same.

    Job schedulers signal the whole process group. A local cluster that ends before its driver leaves that driver
    waiting, in compiled code, for replies that never come.
    """
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def _running_here() -> str | None:
    """Address of a cluster that `ray start --head` started on this machine, if it still answers.

    Ray leaves the address file behind when a head crashes, and then waits for that head for a long time.
    """
    file = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / "ray_current_cluster"
    try:
        address = file.read_text().strip()
    except (OSError, ValueError):
        return None
    return address if answers(address) else None
