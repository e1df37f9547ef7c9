"""A training run, or a stack of seeds, as a trial of Ray Tune: a step is an epoch."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import ray
import torch
from ray import tune

from lsmha.data import Dataset
from lsmha.io.paths import RunPath
from orchestrator.config.sweep import ResourcesConfig
from orchestrator.execution.ranks.rank_group import RankGroup, place_of_leader
from orchestrator.execution.training import train_jobs
from orchestrator.execution.training_job import Paused, Started, TrainingEvent, TrainingJob, ended_by, joint_name
from orchestrator.execution.worker_log import log, log_event, shown_as


def trial_config(jobs: tuple[TrainingJob, ...], resources: ResourcesConfig) -> dict[str, Any]:
    """What Ray Tune is given as a trial's configuration."""
    return {"jobs": jobs, "resources": resources}


class TrainingTrial(tune.Trainable):
    """Trains the jobs of its configuration, as Ray Tune asks it to.

    The first step says that, and where, the training starts; each one after it trains an epoch, or, of jobs that cannot
    be trained together, an epoch of one of them. The last one is `done`, unless a job pauses with it. Checkpoints are
    the jobs' own, so Ray Tune is asked for none. What is foreseen to go wrong is a result; an exception ends the actor.
    """

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> tune.PlacementGroupFactory:
        """What an actor takes that trains such jobs."""
        resources: ResourcesConfig = config["resources"]
        if resources.workers_per_trial > 1:
            bundle = place_of_leader()  # the ranks take the CPUs and GPUs
        else:
            bundle = {"CPU": resources.cpus_per_trial}
            if resources.gpus:
                bundle["GPU"] = resources.gpus
        return tune.PlacementGroupFactory([bundle], strategy=resources.placement.upper())

    def setup(  # type: ignore[override]  # `tune.with_parameters` adds the others
        self, config: dict[str, Any], *, arrays: list[ray.ObjectRef], storage: RunPath
    ) -> None:
        """Take a first configuration; called once for an actor.

        Args:
            config: Of `trial_config`.
            arrays: Refers to `Dataset.to_arrays()` in the object store: the actors of a node read one copy, in place.
            storage: Folder for what Ray Train keeps for itself.
        """
        self._arrays, self._folder = arrays, storage
        self._group: RankGroup | None = None
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next configuration. An error here would end the sweep, so all else is left to the first step."""
        self._jobs: tuple[TrainingJob, ...] = new_config["jobs"]
        self._resources: ResourcesConfig = new_config["resources"]
        self._epochs: Iterator[list[TrainingEvent]] | None = None
        self._unfinished = {job.id for job in self._jobs}
        return True

    def step(self) -> dict[str, Any]:
        """Start, or train an epoch."""
        with shown_as(joint_name(self._jobs)):
            return self._start() if self._epochs is None else self._epoch()

    def cleanup(self) -> None:
        """End the ranks, before the actor ends."""
        if self._group is not None:
            self._group.close()

    def _start(self) -> dict[str, Any]:
        if self._resources.workers_per_trial > 1:
            self._group = self._group or RankGroup(self._resources, self._arrays, storage=self._folder)
            self._epochs = self._group.train(self._jobs)
            where: dict[str, Any] = {"nodes": self._group.nodes, "place": self._group.place}
        else:
            dataset = _dataset(self._arrays[0])
            self._epochs = train_jobs(
                self._jobs,
                dataset,
                device=torch.device("cuda" if self._resources.gpus else "cpu"),
                threads=self._resources.cpus_per_trial,
            )
            where = {"nodes": [ray.get_runtime_context().get_node_id()]}
            log(joint_name(self._jobs), "started")
        return {"events": [Started(job.id) for job in self._jobs], **where}

    def _epoch(self) -> dict[str, Any]:
        assert self._epochs is not None
        events = next(self._epochs)
        if self._group is None:  # whose ranks log for themselves
            for event in events:
                log_event(event)
        self._unfinished -= ended_by(events)
        paused = any(isinstance(event, Paused) for event in events)
        return {"events": events, "done": not self._unfinished and not paused}


@lru_cache(maxsize=1)
def _dataset(arrays: ray.ObjectRef) -> Dataset:
    """The data set, one object for all trials of this process: with it, its copy on the device stays."""
    return Dataset.from_arrays(ray.get(arrays))
