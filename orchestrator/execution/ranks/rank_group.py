"""DDP ranks, by Ray Train, that stay warm from one trial to the next.

The actor of a trial keeps a `TorchTrainer` in a thread. Its ranks take job after job from a mailbox, an actor between
the two, and rank 0 puts there what happened.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from threading import Thread
from typing import Any

import ray
import ray.train
import torch.distributed as dist
from pyarrow.fs import FSSpecHandler, PyFileSystem
from ray.train.torch import TorchTrainer, get_device
from ray.util.placement_group import PlacementGroup

from lsmha.data import Dataset
from lsmha.io.paths import RunPath, is_remote
from orchestrator.cluster.connect import on_this_node
from orchestrator.config.sweep import ResourcesConfig
from orchestrator.execution.ranks.mailbox import Mailbox
from orchestrator.execution.training import train_jobs
from orchestrator.execution.training_job import TrainingEvent, TrainingJob, ended_by, joint_name
from orchestrator.execution.worker_log import log, log_event, shown_as


def place_of_leader() -> dict[str, float]:
    """What the actor takes that has a group, and waits for its ranks: a place on the driver's node, which no autoscaler
    or spot market takes away."""
    return {f"node:{ray.util.get_node_ip_address()}": 0.001}


class RankGroup:
    """The ranks of one trial after another.

    Raises:
        Exception: Whatever ended the ranks before all had begun.
    """

    def __init__(self, resources: ResourcesConfig, arrays: list[ray.ObjectRef], *, storage: RunPath) -> None:
        mailbox: Any = ray.remote(Mailbox)
        self._mailbox = mailbox.options(
            num_cpus=0, scheduling_strategy=on_this_node(), enable_task_events=False
        ).remote(resources.workers_per_trial)
        self._failure: BaseException | None = None
        # Ray Train would take up what another group of the same name has left.
        self._name = f"ranks-{ray.get_runtime_context().get_actor_id()}"
        self._thread = Thread(target=self._fit, args=(resources, arrays, storage), daemon=True)
        self._thread.start()
        self.nodes, self.place = self._answer(self._mailbox.all_joined.remote())
        """Ids of the nodes that ranks are on, and of the placement group that Ray Train has made for them."""

    def train(self, jobs: Sequence[TrainingJob]) -> Iterator[list[TrainingEvent]]:
        """Have the ranks train jobs; yields what `train_jobs` yields on rank 0.

        Raises:
            Exception: Whatever ended a rank, or all of them.
        """
        ray.get(self._mailbox.put.remote(jobs))
        unfinished = {job.id for job in jobs}
        while unfinished:
            events = self._answer(self._mailbox.next_events.remote())
            unfinished -= ended_by(events)
            yield events

    def close(self) -> None:
        """Have the ranks end; waits until they have."""
        self._mailbox.close.remote()
        self._thread.join(10)

    def _answer(self, reference: ray.ObjectRef) -> Any:
        """What the mailbox answers, once it does; while it does not, look after the ranks."""
        while True:
            done, _ = ray.wait([reference], timeout=0.5)
            if done:
                return ray.get(reference)
            if not self._thread.is_alive():
                raise self._failure or RuntimeError("the ranks have ended before their work was done")

    def _fit(self, resources: ResourcesConfig, arrays: list[ray.ObjectRef], storage: RunPath) -> None:
        workers, gpus = resources.workers_per_trial, resources.gpus
        trainer = TorchTrainer(
            work_as_rank,
            train_loop_config={"mailbox": self._mailbox, "arrays": arrays, "resources": resources},
            scaling_config=ray.train.ScalingConfig(
                num_workers=workers,
                use_gpu=gpus > 0,
                resources_per_worker={
                    "CPU": resources.cpus_per_trial // workers,
                    **({"GPU": gpus / workers} if gpus else {}),
                },
                placement_strategy=resources.placement.upper(),
            ),
            # Whoever runs the trials decides what becomes of one whose ranks failed.
            run_config=ray.train.RunConfig(
                name=self._name, **_storage_settings(storage), failure_config=ray.train.FailureConfig(max_failures=0)
            ),
        )
        try:
            trainer.fit()
        except ray.train.TrainingFailedError as error:
            failures = getattr(error, "worker_failures", None) or {}
            self._failure = next(iter(failures.values()), error)
        except BaseException as error:
            self._failure = error


def work_as_rank(config: dict[str, Any]) -> None:
    """Train what the mailbox has, on every rank."""
    mailbox, resources = config["mailbox"], config["resources"]
    place = ray.util.get_current_placement_group()
    node = ray.get_runtime_context().get_node_id()
    leads = dist.get_rank() == 0
    log(ray.train.get_context().get_experiment_name(), f"rank {dist.get_rank()} of {dist.get_world_size()}")
    ray.get(mailbox.join.remote(node, None if place is None else place.id.hex()))
    dataset = Dataset.from_arrays(ray.get(config["arrays"][0]))
    number = 0
    while (jobs := ray.get(mailbox.round.remote(number))) is not None:
        with shown_as(joint_name(jobs)):
            if leads:
                log(joint_name(jobs), "started")
            threads = resources.cpus_per_trial // resources.workers_per_trial
            unfinished = {job.id for job in jobs}
            for steps, events in enumerate(train_jobs(jobs, dataset, device=get_device(), threads=threads), start=1):
                if leads:
                    for event in events:
                        log_event(event)
                    ray.get(mailbox.tell.remote(events))
                unfinished -= ended_by(events)
                if unfinished and not ray.get(mailbox.goes_on.remote(number, steps)):
                    break
            number += 1


def _storage_settings(folder: RunPath) -> dict[str, Any]:
    """Ray Train's settings for the folder where it keeps what it needs."""
    if not is_remote(folder):
        return {"storage_path": str(folder)}
    return {"storage_path": folder.path, "storage_filesystem": PyFileSystem(FSSpecHandler(folder.fs))}


def free_places_of_ranks(place: str | None, *, besides: Collection[str]) -> None:
    """Free what Ray Train has reserved for ranks that are gone, their own `place` or, where that is not known, all that
    is not among those `besides`. (Ranks that are just about to start there start anew.)

    Ray keeps the places of a controller that was killed until the job ends (its own cleaner works only where a
    dashboard runs), so the next ranks would wait for ever.
    """
    job = ray.get_runtime_context().get_job_id()
    for name, found in ray.util.placement_group_table().items():
        of_leader = any(kind.startswith("node:") for bundle in found["bundles"].values() for kind in bundle)
        ours = name == place if place else not of_leader and name not in besides
        if ours and name.endswith(job) and found["state"] != "REMOVED":
            ray.util.remove_placement_group(PlacementGroup(ray.PlacementGroupID.from_hex(name)))
