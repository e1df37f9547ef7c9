"""What a cluster has and can grow to, and whether it can hold what is asked of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import ray
import ray._private.state

from orchestrator.config.sweep import ResourcesConfig, SweepConfig
from orchestrator.errors import UserError

Nodes = tuple[tuple[int, float], ...]
"""CPUs and GPUs of each node."""


@dataclass(frozen=True)
class Capacity:
    """What a cluster has, and what its autoscaler can add."""

    present: Nodes
    """Nodes that are there."""
    addable: Nodes = ()
    """Nodes that come when work waits for them."""

    @property
    def nodes(self) -> Nodes:
        """All that there can be."""
        return self.present + self.addable

    @property
    def cpus(self) -> int:
        """CPUs of all nodes that there can be."""
        return sum(cpus for cpus, _ in self.nodes)

    @property
    def gpus(self) -> float:
        """GPUs of all nodes that there can be."""
        return sum(gpus for _, gpus in self.nodes)

    @property
    def node_cpus(self) -> int:
        """CPUs of the largest node that there can be."""
        return max((cpus for cpus, _ in self.nodes), default=0)

    def places(self, cpus: float, gpus: float) -> int:
        """How many workers of so many CPUs and GPUs fit when the cluster has grown, each whole on one node."""
        return sum(_places(node, cpus, gpus) for node in self.nodes)

    def __str__(self) -> str:
        told = f"{_total(self.present)} on {len(self.present)} node(s)"
        return f"{told}, growing to {_total(self.nodes)} on {len(self.nodes)}" if self.addable else told


def _places(node: tuple[int, float], cpus: float, gpus: float) -> int:
    by_cpus = int(node[0] / cpus + 1e-9)
    return min(by_cpus, int(node[1] / gpus + 1e-9)) if gpus else by_cpus


def _total(nodes: Nodes) -> str:
    return f"{sum(cpus for cpus, _ in nodes)} CPU(s) and {sum(gpus for _, gpus in nodes):g} GPU(s)"


def capacity_of_cluster() -> Capacity:
    """The capacity of the cluster that this process has joined."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    # Where `autoscaler_limits` leaves them; Ray Train and Data read this private accessor likewise.
    config = ray._private.state.state.get_cluster_config()
    groups = config.node_group_configs if config is not None else ()
    there = Counter(node.get("Labels", {}).get("ray.io/node-group") for node in alive)
    addable: list[tuple[int, float]] = []
    for group in groups:
        # Without a limit (-1), twice what there is: enough to plan with.
        limit = group.max_count if group.max_count >= 0 else 2 * max(1, there[group.name])
        addable += [_cpus_and_gpus(group.resources)] * max(0, limit - there[group.name])
    return Capacity(
        tuple(_cpus_and_gpus(node["Resources"]) for node in alive), tuple(node for node in addable if any(node))
    )


def _cpus_and_gpus(resources: Mapping[str, float]) -> tuple[int, float]:
    cpus, gpus = (dict(resources).get(kind, 0) for kind in ("CPU", "GPU"))
    return int(cpus), float(gpus)


def concurrent_trials(resources: ResourcesConfig, capacity: Capacity) -> int:
    """How many trials fit at a time, at least 1, at most `max_concurrent_trials`."""
    fit = capacity.places(*_of_a_worker(resources)) // resources.workers_per_trial
    return max(1, min(fit, resources.max_concurrent_trials or fit))


def trials_per_node(resources: ResourcesConfig, capacity: Capacity) -> Iterator[int]:
    """How many whole trials fit on each node that there can be."""
    for node in capacity.nodes:
        yield _places(node, *_of_a_worker(resources)) // resources.workers_per_trial


def check_capacity(config: SweepConfig, capacity: Capacity) -> None:
    """Refuse what Ray would wait for without end.

    Raises:
        UserError: A trial, a finalist or a latency measurement asks for more than there can be.
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
        UserError: It asks for more than there can be, or one of its workers for more than a node has.
    """
    for kind, wanted, has in (
        ("cpus", resources.cpus_per_trial, capacity.cpus),
        ("gpus", resources.gpus, capacity.gpus),
    ):
        if wanted > has:
            raise UserError(
                f"{section}.{kind}_per_trial: at most the {has:g} {kind.upper()[:-1]}(s) of the cluster are allowed, "
                f"but got {wanted:g}"
            )
    places, workers = capacity.places(*_of_a_worker(resources)), resources.workers_per_trial
    if places < workers:
        cpus, gpus = _of_a_worker(resources)
        raise UserError(
            f"{section}.workers_per_trial: the nodes of the cluster have places for {places} worker(s) of "
            f"{cpus:g} CPU(s) and {gpus:g} GPU(s), but got {workers}"
        )


def _of_a_worker(resources: ResourcesConfig) -> tuple[float, float]:
    """CPUs and GPUs of one worker of a trial."""
    workers = resources.workers_per_trial
    return resources.cpus_per_trial / workers, resources.gpus / workers
