"""What scheduling costs on a cluster: trials that train nothing, 40 at a time, on four hosts.

    python benchmarks/cluster_scheduling.py --out benchmarks/cluster_scheduling.md

The hosts are namespaces of this machine with an sshd each (`tests/cluster_hosts.py`), made a cluster by `ray up
cluster.local.yaml`; each claims 10 CPUs. The driver runs on the head: `TuneEngine` and its `Tuner.fit` are the
product's own, only what an actor does with a job is replaced, in a process that never imports torch (40 of those would
not fit into one machine's memory). Needs root, as the hosts do.

- cold: 40 actors are started at once, each gets a trial, and no trial ends before all 40 have begun: so many really
  run at a time.
- warm: 2,000 trials that end at once, in actors that are there already: what Ray Tune, driver and network cost.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

from orchestrator.execution.training_job import Completed, Started, TrainingEvent, TrainingJob, Warned

WORKERS, HOSTS, ROUNDS = 40, 4, 50
GATE = "/mnt/lsmha/open"
"""A file that all hosts see, once the first trials have begun."""
FEW_REAL_CORES = {"RAY_worker_maximum_startup_concurrency": "2", "RAY_worker_register_timeout_seconds": "600"}
"""Ray starts as many processes at a time as a host claims to have CPUs, and gives up on those that take a minute."""


# ---- the driver, on the head ------------------------------------------------------------------------------------


def trial_without_training() -> Any:
    """A class to take the place of `TrainingTrial`: it holds each job until the gate is open, and does nothing else."""
    import ray
    from ray import tune

    class TrainingTrial(tune.Trainable):
        @classmethod
        def default_resource_request(cls, config: dict[str, Any]) -> tune.PlacementGroupFactory:
            return tune.PlacementGroupFactory([{"CPU": 1}])

        def setup(self, config: dict[str, Any], **parameters: Any) -> None:
            self.reset_config(config)

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            (self.job,), self.has_started = new_config["jobs"], False
            return True

        def step(self) -> dict[str, Any]:
            from orchestrator.execution.training_job import Completed, Started, TrainingResult, Warned

            node = ray.get_runtime_context().get_node_id()
            if not self.has_started:
                self.has_started = True
                return {"events": [Started(self.job.id)], "nodes": [node]}
            while not Path(GATE).exists():
                time.sleep(0.5)
            worker = ray.get_runtime_context().get_actor_id()
            nothing = TrainingResult((), "fp32", "none", "cpu")
            return {"events": [Warned(self.job.id, f"{worker} {node}"), Completed(self.job.id, nothing)], "done": True}

    return TrainingTrial


class Stamps:
    """When each job began and ended, by the driver's clock, and where."""

    def __init__(self) -> None:
        self.began: dict[str, float] = {}
        self.ended: dict[str, float] = {}
        self.by: list[tuple[str, str]] = []

    def __call__(self, event: TrainingEvent) -> None:
        match event:
            case Started():
                self.began.setdefault(event.job_id, time.monotonic())
                if len(self.began) == WORKERS:
                    Path(GATE).touch()
            case Warned():
                worker, node = event.message.split()
                self.by.append((worker, node))
            case Completed():
                self.ended[event.job_id] = time.monotonic()
            case _:
                raise AssertionError(event)


def drive() -> None:
    """Measure on the cluster that this machine is the head of; prints a line of JSON."""
    import ray

    from lsmha.config import ModelConfig, TrainConfig
    from orchestrator.cluster.connect import ClusterChoice, connect
    from orchestrator.config.sweep import ResourcesConfig
    from orchestrator.execution import engine

    def jobs(title: str, number: int) -> list[TrainingJob]:
        return [
            TrainingJob(f"{title}{index}", ModelConfig(), TrainConfig(), Path("/nowhere")) for index in range(number)
        ]

    resources = ResourcesConfig()
    engine.TrainingTrial = trial_without_training()  # type: ignore[misc]
    with (
        connect(ClusterChoice()) as capacity,
        engine.TuneEngine(ray.put({}), storage=Path("/nowhere")) as ours,
    ):
        assert capacity.cpus == WORKERS, capacity
        measured = {}
        for title, number in (("cold", WORKERS), ("warm", ROUNDS * WORKERS)):
            stamps = Stamps()
            start, cpu = time.monotonic(), time.process_time()
            ours.train(jobs(title, number), stamps, resources=resources, concurrency=WORKERS)
            begun = sorted(moment - start for moment in stamps.began.values())
            measured[title] = {
                "seconds": time.monotonic() - start,
                "driver_cpu_s": time.process_time() - cpu,
                "began_s": begun,
                "last_start_before_first_end": max(stamps.began.values()) <= min(stamps.ended.values()),
                "jobs_per_worker": sorted(Counter(worker for worker, _ in stamps.by).values()),
                "jobs_per_node": sorted(Counter(node for _, node in stamps.by).values()),
            }
    print("MEASURED " + json.dumps(measured))


# ---- the hosts --------------------------------------------------------------------------------------------------


def measure() -> dict[str, Any]:
    """Bring the cluster up, run the driver on its head, and take it down."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    from cluster_hosts import network, why_not
    from ray_up import Cluster, prepare_installation

    if (reason := why_not()) is not None:
        sys.exit(f"error: {reason}")
    with tempfile.TemporaryDirectory() as folder:
        shared = Path(folder) / "shared"
        shared.mkdir()
        (shared / "driver.py").write_text(Path(__file__).read_text())
        with network(Path(folder) / "network", shared=shared) as lan:
            prepare_installation(lan)
            head, *workers = [lan.add_host(f"host{number}") for number in range(HOSTS)]
            cluster = Cluster(lan, head, workers, num_cpus=WORKERS // HOSTS, environment=FEW_REAL_CORES)
            cluster.up()
            done = head.run("python /mnt/lsmha/driver.py --drive", check=False, timeout=1200)
            if done.returncode:
                sys.exit(done.stdout + done.stderr)
            (line,) = (line for line in done.stdout.splitlines() if line.startswith("MEASURED "))
            return json.loads(line.removeprefix("MEASURED "))


def table(measured: dict[str, Any]) -> str:
    """The measurement as Markdown."""
    cold, warm = measured["cold"], measured["warm"]
    rows = [
        ("trials", len(cold["began_s"]), len(warm["began_s"])),
        ("all in (s)", f"{cold['seconds']:.1f}", f"{warm['seconds']:.1f}"),
        ("began: first, median, last (s)", _spread(cold["began_s"]), _spread(warm["began_s"])),
        ("all of them at a time", "yes" if cold["last_start_before_first_end"] else "no", "not asked"),
        ("per trial (ms)", _each(cold), _each(warm)),
        ("driver's CPU time per trial (ms)", _cpu(cold), _cpu(warm)),
        ("actors that worked", len(cold["jobs_per_worker"]), len(warm["jobs_per_worker"])),
        ("trials per actor: fewest, median, most", _counts(cold["jobs_per_worker"]), _counts(warm["jobs_per_worker"])),
        ("trials per host", _list(cold["jobs_per_node"]), _list(warm["jobs_per_node"])),
    ]
    lines = [f"| {name} | {one} | {other} |" for name, one, other in rows]
    return "\n".join(["| | cold | warm |", "| --- | --- | --- |", *lines])


def _spread(values: list[float]) -> str:
    return f"{values[0]:.1f}, {statistics.median(values):.1f}, {values[-1]:.1f}"


def _each(part: dict[str, Any]) -> str:
    return f"{1000 * part['seconds'] / len(part['began_s']):.1f}"


def _cpu(part: dict[str, Any]) -> str:
    return f"{1000 * part['driver_cpu_s'] / len(part['began_s']):.1f}"


def _counts(values: list[int]) -> str:
    return f"{values[0]}, {statistics.median(values):g}, {values[-1]}"


def _list(values: list[int]) -> str:
    return ", ".join(map(str, values))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="file for the table; by default it is printed only")
    parser.add_argument("--drive", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.drive:
        drive()
        return
    import torch

    from lsmha.devices.hardware import device_name

    cpu = device_name(torch.device("cpu"))
    measured = measure()
    told = f"""# {WORKERS} trials at a time on {HOSTS} hosts: what scheduling costs

`python benchmarks/cluster_scheduling.py --out benchmarks/cluster_scheduling.md`; one run.

{table(measured)}

The hosts are namespaces of one machine with {os.cpu_count()} cores ({cpu}), each claiming {WORKERS // HOSTS}
CPUs: the cold start is that of {WORKERS} Python processes on those few cores, and takes less time on {HOSTS} machines.
Python {platform.python_version()}, Ray {version("ray")}. A warm trial begins, reports and ends through Ray Tune, the
driver and the network, and trains nothing.
"""
    print(told)
    if arguments.out is not None:
        arguments.out.write_text(told)


if __name__ == "__main__":
    main()
