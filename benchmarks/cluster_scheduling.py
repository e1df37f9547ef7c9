"""What scheduling costs on a cluster: 200 trials that train nothing, all at a time, on four hosts.

    python benchmarks/cluster_scheduling.py --out benchmarks/cluster_scheduling.md

The hosts are namespaces of this machine with an sshd each (`tests/cluster_hosts.py`), made a cluster by `ray up
cluster.local.yaml`; each claims 50 CPUs. The driver runs on the head: the worker pool, its job queue and its
events are the product's own, only what a worker does with a job is replaced, in a process that never imports torch (200
of those would not fit into one machine's memory). Needs root, as the hosts do.

- cold: 200 workers are started at once, each gets a trial, and no trial ends before all 200 have begun: so many really
  run at a time.
- warm: 2,000 trials that end at once, in processes that are there already: what queue, driver and network cost.
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

WORKERS, HOSTS, ROUNDS = 200, 4, 10
GATE = "/mnt/lsmha/open"
"""A file that all hosts see, once the first 200 trials have begun."""
FEW_REAL_CORES = {"RAY_worker_maximum_startup_concurrency": "2", "RAY_worker_register_timeout_seconds": "600"}
"""Ray starts as many processes at a time as a host claims to have CPUs, and gives up on those that take a minute."""


# ---- the driver, on the head ------------------------------------------------------------------------------------


def work_without_training(queue: Any, worker: str, arrays: Any, resources: Any, stacked_seeds: int) -> None:
    """Hold each job until the gate is open, and do nothing else.

    It does not wait in `ray.get`: a task that does lends its CPU to others meanwhile.
    """
    import ray

    from orchestrator.execution.training_job import Completed, TrainingResult, Warned

    node = ray.get_runtime_context().get_node_id()
    nothing = TrainingResult((), "fp32", "none", "cpu")
    ray.get(queue.join.remote(worker, node))
    while jobs := ray.get(queue.get.remote(worker)):
        while not Path(GATE).exists():
            time.sleep(0.5)
        ray.get(queue.tell.remote(worker, Warned(jobs[0].id, f"{worker} {node}")))
        ray.get(queue.tell.remote(worker, Completed(jobs[0].id, nothing)))


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
    from orchestrator.execution import worker_pool

    def jobs(title: str, number: int) -> list[TrainingJob]:
        return [
            TrainingJob(f"{title}{index}", ModelConfig(), TrainConfig(), Path("/nowhere")) for index in range(number)
        ]

    resources = ResourcesConfig()
    task = ray.remote(work_without_training).options(num_cpus=1, max_retries=0, name="train")
    worker_pool.worker_task = lambda _: task
    with connect(ClusterChoice()) as capacity:
        assert capacity.cpus == WORKERS, capacity
        ours = worker_pool.WorkerPool(ray.put({}), storage=Path("/nowhere"))
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
        ("workers that worked", len(cold["jobs_per_worker"]), len(warm["jobs_per_worker"])),
        ("trials per worker: fewest, median, most", _counts(cold["jobs_per_worker"]), _counts(warm["jobs_per_worker"])),
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
Python {platform.python_version()}, Ray {version("ray")}. A warm trial begins, reports and ends through the queue, the
driver and the network, and trains nothing: the workers that came first had done all before the others had begun.
"""
    print(told)
    if arguments.out is not None:
        arguments.out.write_text(told)


if __name__ == "__main__":
    main()
