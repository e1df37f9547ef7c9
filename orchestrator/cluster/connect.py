"""Joining a Ray cluster, or starting a local one."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.cluster.capacity import Capacity, capacity_of_cluster
from orchestrator.cluster.guard import cluster_guard
from orchestrator.cluster.local_cluster import (
    WORKER_ENVIRONMENT,
    children_deaf_to_signals,
    kill_at_shutdown,
    local_settings,
    starting_here,
)
from orchestrator.cluster.loss import answers, connection_to
from orchestrator.errors import UserError


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
    own = local_settings(dashboard=cluster.dashboard) if is_own else {}
    try:
        with children_deaf_to_signals(), starting_here() if is_own else _standard_error_hushed():
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
        what = "no Ray cluster can be started here" if is_own else f"no Ray cluster can be joined at {wanted!r}"
        raise UserError(f"--address: {what}: {_reason(error, wanted)}") from None
    with cluster_guard() if is_own else nullcontext():
        try:
            yield capacity_of_cluster()
        finally:
            if is_own:
                kill_at_shutdown()
            ray.shutdown()


def _reason(error: Exception, wanted: str) -> str:
    """Why Ray did not let this process in, in one line."""
    if "AuthenticationError" in str(error.__cause__):
        return "it answers, but lets only those in who have its token (RAY_AUTH_MODE=token, ~/.ray/auth_token)"
    if "No node info" in str(error.__cause__):
        return "it answers, but none of its nodes is alive"
    if "Version mismatch" in str(error):  # both lists of versions are what one needs
        return " ".join(str(error).split())
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


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
    if wanted == "local":
        return wanted
    if "://" in wanted:
        raise UserError(
            f"{setting}: must be host:port of a running Ray cluster, as `ray start` says it, but is {wanted!r}"
        )
    if not answers(wanted):
        raise UserError(f"{setting}: must be host:port of a running Ray cluster, but nothing answers at {wanted!r}")
    if _is_web_server(wanted):
        raise UserError(
            f"{setting}: must be host:port of a running Ray cluster, mostly port 6379, but web pages are served at "
            f"{wanted!r}, as by Ray's dashboard"
        )
    return wanted


def _is_web_server(address: str) -> bool:
    """Whether HTTP/1 is spoken at `host:port`; Ray itself would try to join for minutes."""
    try:
        with connection_to(address) as connection:
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            return connection.recv(7) == b"HTTP/1."
    except OSError:
        return False


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
