"""Joining a Ray cluster or starting a local one, and whether it can hold what a sweep asks for."""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Read by Ray when it is imported.
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")

import ray

from orchestrator.errors import UserError
from orchestrator.sweep_config import ResourcesConfig, SweepConfig

WORKER_ENVIRONMENT = {
    # Big temporaries come back from glibc's own heap instead of from the kernel, page fault by page fault.
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 32),
    "MALLOC_TOP_PAD_": str(1 << 26),
    "RAY_TRAIN_V2_ENABLED": "1",
}


@dataclass(frozen=True)
class Capacity:
    """What a cluster has: CPUs and GPUs of each node."""

    nodes: tuple[tuple[int, float], ...]

    @property
    def cpus(self) -> int:
        """CPUs of all nodes."""
        return sum(cpus for cpus, _ in self.nodes)

    @property
    def gpus(self) -> float:
        """GPUs of all nodes."""
        return sum(gpus for _, gpus in self.nodes)

    @property
    def node_cpus(self) -> int:
        """CPUs of the largest node."""
        return max((cpus for cpus, _ in self.nodes), default=0)

    def places(self, cpus: float, gpus: float) -> int:
        """How many workers of so many CPUs and GPUs fit, each whole on one node."""
        fitting = 0
        for node_cpus, node_gpus in self.nodes:
            by_cpus = int(node_cpus / cpus + 1e-9)
            fitting += min(by_cpus, int(node_gpus / gpus + 1e-9)) if gpus else by_cpus
        return fitting


@contextmanager
def connect(address: str | None, *, dashboard: bool = False) -> Iterator[Capacity]:
    """Join the cluster at `address` (or RAY_ADDRESS, or one started by `ray start --head` here), else start one.

    The job leaves the cluster when the block ends; a cluster started here stops.

    Raises:
        UserError: There is no cluster at the address.
    """
    wanted = address or os.environ.get("RAY_ADDRESS") or _running_here() or "local"
    if wanted not in ("local", "auto") and not _answers(wanted):
        raise UserError(f"--address: must be host:port of a running Ray cluster, but nothing answers at {wanted!r}")
    local: dict[str, Any] = {
        "include_dashboard": dashboard,
        "dashboard_host": "127.0.0.1",
        # Ray ends worker processes that were idle for a second; theirs is all that makes the next trial start at once.
        "_system_config": {"idle_worker_killing_time_threshold_ms": 600_000},
    }
    try:
        with _children_deaf_to_sigterm():
            ray.init(
                address=wanted,
                runtime_env={"env_vars": WORKER_ENVIRONMENT},
                log_to_driver=False,
                logging_level=logging.ERROR,
                configure_logging=True,
                **(local if wanted == "local" else {}),
            )
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"--address: no Ray cluster can be joined at {wanted!r}: {reason}") from None
    try:
        yield _capacity()
    finally:
        ray.shutdown()


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


def concurrent_trials(resources: ResourcesConfig, capacity: Capacity) -> int:
    """How many trials fit at a time, at least 1, at most `max_concurrent_trials`."""
    fit = _places(resources, capacity) // resources.workers_per_trial
    return max(1, min(fit, resources.max_concurrent_trials or fit))


def check_capacity(config: SweepConfig, capacity: Capacity) -> None:
    """Refuse what Ray would wait for without end.

    Raises:
        UserError: A trial, a finalist or a latency measurement asks for more than there is.
    """
    check_resources("resources", config.resources, capacity)
    check_resources("finalists.resources", config.finalist_resources(), capacity)
    if config.analysis.enabled:
        check_task(*config.analysis_resources(), capacity)
    if config.latency.device == "cuda" and capacity.gpus < 1:
        raise UserError("latency.device: must be cpu or auto on a cluster without GPUs, but got 'cuda'")


def check_task(cpus: int, gpus: float, capacity: Capacity) -> None:
    """Refuse the analysis of one network that the cluster cannot hold.

    Raises:
        UserError: It asks for more than a node has.
    """
    if not capacity.places(cpus, gpus):
        raise UserError(
            "analysis.cpus_per_task, analysis.gpus_per_task: must fit on one node of the cluster, "
            f"but got {cpus} CPU(s) and {gpus:g} GPU(s)"
        )


def check_resources(section: str, resources: ResourcesConfig, capacity: Capacity) -> None:
    """Refuse one training run that the cluster cannot hold; `section` names the settings in the message.

    Raises:
        UserError: It asks for more than the cluster has, or one of its workers for more than a node has.
    """
    for kind, has in (("cpus", capacity.cpus), ("gpus", capacity.gpus)):
        wanted = getattr(resources, f"{kind}_per_trial")
        if wanted > has:
            raise UserError(
                f"{section}.{kind}_per_trial: at most the {has:g} {kind.upper()[:-1]}(s) of the cluster are allowed, "
                f"but got {wanted:g}"
            )
    places, workers = _places(resources, capacity), resources.workers_per_trial
    if places < workers:
        raise UserError(
            f"{section}.workers_per_trial: the nodes of the cluster have places for {places} worker(s) of "
            f"{resources.cpus_per_trial / workers:g} CPU(s) and {resources.gpus_per_trial / workers:g} GPU(s), "
            f"but got {workers}"
        )


def _places(resources: ResourcesConfig, capacity: Capacity) -> int:
    workers = resources.workers_per_trial
    return capacity.places(resources.cpus_per_trial / workers, resources.gpus_per_trial / workers)


def _capacity() -> Capacity:
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return Capacity(tuple((int(node.get("CPU", 0)), node.get("GPU", 0.0)) for node in nodes))


def _running_here() -> str | None:
    """Address of a cluster that `ray start --head` started on this machine, if it still answers.

    Ray leaves the address file behind when a head crashes, and then waits for that head for a long time.
    """
    file = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / "ray_current_cluster"
    try:
        address = file.read_text().strip()
    except (OSError, ValueError):
        return None
    return address if _answers(address) else None


def _answers(address: str) -> bool:
    """Whether something listens at host:port. Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=3):
            return True
    except (OSError, ValueError, OverflowError):
        return False
