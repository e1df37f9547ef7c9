"""How many trials one controller can run: 10,000 that train nothing, 500 at a time, on hosts with pretended CPUs.

    python benchmarks/scale.py --out benchmarks/scale

The hosts are Ray nodes on this machine, each claiming many CPUs. A trial is the product's in all but its training:
`TuneEngine`, `Tuner.fit` and `TrainingTrial` are what a sweep uses, each actor is a process, and only `train_jobs` is
replaced in it, by a function that makes metrics up. The actors' processes are forked (`forked_worker.py`): started one
by one, they would not fit into one machine.

For each number of trials at a time, a cluster and a driver of their own:

- many trials of one epoch, from a cold start: what a trial costs, whether all trials and all actors get their turn, and
  how the driver's memory grows;
- then few trials of many epochs, in the same actors: what a result costs. The first epoch of each does not end before
  all that run at a time have begun: so many really do.

The driver is observed from within. The controller is the thread of `Tuner.fit`: what CPU time it needs for a result
says how many results a second it could take if nothing else wanted the CPUs, as the actors of this machine do.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from lsmha.bench.repeats import Spread
from lsmha.bench.report import Report, Table
from orchestrator.execution.job_line import JobLine
from orchestrator.execution.training_job import Completed, EpochEnded, Started, TrainingEvent, TrainingJob, Warned

QUARTERS, EXTRAPOLATED = 4, 1000
TICKS = os.sysconf("SC_CLK_TCK")
MEMORY_BOUND_GIB = 2.0
SYSTEM_CONFIG = {
    "enable_metrics_collection": False,
    "task_events_report_interval_ms": 0,
    # Ray starts as many processes at a time as a host claims to have CPUs, and gives up on those that take a minute.
    "worker_maximum_startup_concurrency": 2,
    "worker_register_timeout_seconds": 180,
}
"""Hosts claim many CPUs, but there are few."""


@dataclass(frozen=True)
class Quarter:
    """Of the trials of a measurement, as they ended."""

    trials: int
    seconds: float
    driver_cpu_s: float
    """Of all threads of the driver."""
    controller_cpu_s: float
    """Of the thread of `Tuner.fit`."""
    resident_gib: float
    """Of the driver, at the end of the quarter."""


@dataclass(frozen=True)
class Measurement:
    """Trials of one kind, by one driver."""

    at_a_time: int
    trials: int
    epochs: int
    results: int
    quarters: list[Quarter]
    most_at_a_time: int
    """Trials that had begun and not ended."""
    all_began_s: float
    """Until each actor that did any trial had begun with its first one."""
    trials_per_actor: Spread
    """Of each actor that did any."""
    cold_waits_s: Spread | None
    """From a trial's turn in line to its start, of those whose turn came before all actors had begun."""
    warm_waits_s: Spread | None
    """The same of those whose turn came later."""
    peak_gib: float
    """Resident memory of the driver at its highest so far."""

    @property
    def seconds(self) -> float:
        return sum(quarter.seconds for quarter in self.quarters)

    @property
    def driver_cpu_s(self) -> float:
        return sum(quarter.driver_cpu_s for quarter in self.quarters)

    @property
    def controller_cpu_s(self) -> float:
        return sum(quarter.controller_cpu_s for quarter in self.quarters)


@dataclass(frozen=True)
class Session:
    """What one driver came to."""

    at_a_time: int
    actor_mib: float
    """Private memory of an actor's process, the median."""
    close_s: float
    """From the end of the last trial to the end of `Tuner.fit`."""
    peak_gib: float
    """Resident memory of the driver at its highest, that end included."""


# ---- the driver: a process of its own ---------------------------------------------------------------------------


class ArraysWithoutTraining(dict[str, Any]):
    """The arrays of a data set. An actor that unpickles them trains no more: it makes results up.

    Trials of several epochs wait in the first one for the file `gate`.
    """

    def __init__(self, arrays: dict[str, Any], gate: Path) -> None:
        super().__init__(arrays)
        self._gate = gate

    def __reduce__(self) -> Any:
        return _arrays_in_worker, (dict(self), self._gate)


def _arrays_in_worker(arrays: dict[str, Any], gate: Path) -> dict[str, Any]:
    import ray

    from orchestrator.execution import trial
    from orchestrator.execution.training_job import TrainingResult

    worker = f"{ray.get_runtime_context().get_actor_id()} {os.getpid()}"

    def no_training(jobs: Any, dataset: Any, *, device: Any, threads: int) -> Iterator[list[Any]]:
        (job,) = jobs
        chance = random.Random(job.id)
        names = ("train_loss", "val_loss", "val_accuracy", "learning_rate", "seconds", "images_per_s")
        curve: list[dict[str, float]] = []
        while job.train.epochs > 1 and not gate.exists():
            time.sleep(0.2)
        for epoch in range(1, job.train.epochs + 1):
            curve.append({"epoch": epoch, **{name: chance.random() for name in names}})
            if epoch < job.train.epochs:
                yield [EpochEnded(job.id, curve[-1])]
        result = TrainingResult(tuple(curve), "fp32", "sdpa", "cpu")
        yield [EpochEnded(job.id, curve[-1]), Warned(job.id, worker), Completed(job.id, result)]

    trial.train_jobs = no_training
    return arrays


class StampedLine(JobLine):
    """Notes when it was each job's turn."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: dict[str, float] = {}

    def take(self, limit: int = 1) -> tuple[TrainingJob, ...]:
        jobs = super().take(limit)
        self.taken.update({job.id: time.monotonic() for job in jobs})
        return jobs


class Watch:
    """Told what happens to the jobs of one call of `TuneEngine.train`."""

    def __init__(
        self, engine: Any, line: StampedLine, title: str, jobs: list[TrainingJob], at_a_time: int, gate: Path
    ) -> None:
        self._engine, self._line, self._gate = engine, line, gate
        self._title, self._jobs, self._at_a_time = title, jobs, at_a_time
        self._epochs: Counter[str] = Counter()
        self._started: dict[str, float] = {}
        self._ended: set[str] = set()
        self._most = 0
        self._actor: dict[str, str] = {}
        self._began: dict[str, float] = {}
        """When each actor began its first job."""
        self.processes: set[int] = set()
        self._quarters: list[Quarter] = []
        self._last = self._sample()
        self._begin = self._last[0]

    def __call__(self, event: TrainingEvent) -> None:
        match event:
            case Started():
                assert event.job_id not in self._started, event  # a second time: an actor was lost
                self._started[event.job_id] = time.monotonic()
                self._most = max(self._most, len(self._started) - len(self._ended))
                if len(self._started) == self._at_a_time and self._jobs[0].train.epochs > 1:
                    self._gate.touch()
            case EpochEnded():
                self._epochs[event.job_id] += 1
            case Warned():
                actor, process = event.message.split()
                self._actor[event.job_id] = actor
                self.processes.add(int(process))
                self._began.setdefault(actor, self._started[event.job_id])
            case Completed():
                assert event.job_id not in self._ended, event
                self._ended.add(event.job_id)
                if len(self._ended) in {round(len(self._jobs) * part / QUARTERS) for part in range(1, QUARTERS + 1)}:
                    self._end_quarter()
            case _:
                raise AssertionError(event)

    def _sample(self) -> tuple[float, float, float]:
        thread = self._engine._thread
        controller = 0.0 if thread is None else _cpu_of_thread(thread.native_id)
        return time.monotonic(), time.process_time(), controller

    def _end_quarter(self) -> None:
        now = self._sample()
        seconds, driver, controller = (after - before for before, after in zip(self._last, now, strict=True))
        trials = len(self._ended) - sum(quarter.trials for quarter in self._quarters)
        self._last = now
        self._quarters.append(Quarter(trials, seconds, driver, controller, _memory_gib("VmRSS")))
        print(
            f"{self._at_a_time} at a time, {self._title}: {len(self._ended):,} of {len(self._jobs):,} trials, "
            f"{trials / seconds:.1f} per second, driver {_memory_gib('VmRSS'):.2f} GiB",
            flush=True,
        )

    def measurement(self) -> Measurement:
        """What was seen; every job has ended just once, after each of its epochs."""
        assert self._ended == {job.id for job in self._jobs}
        assert all(self._epochs[job.id] == job.train.epochs for job in self._jobs)
        turns = {job.id: self._line.taken[job.id] for job in self._jobs}
        all_began = max(self._began.values())
        cold, warm = (
            [self._started[job] - turn for job, turn in turns.items() if (turn < all_began) == is_cold]
            for is_cold in (True, False)
        )
        return Measurement(
            at_a_time=self._at_a_time,
            trials=len(self._jobs),
            epochs=self._jobs[0].train.epochs,
            results=len(self._jobs) + sum(self._epochs.values()),
            quarters=self._quarters,
            most_at_a_time=self._most,
            all_began_s=all_began - self._begin,
            trials_per_actor=Spread.of(list(Counter(self._actor.values()).values())),
            cold_waits_s=Spread.of(cold) if cold else None,
            warm_waits_s=Spread.of(warm) if warm else None,
            peak_gib=_memory_gib("VmHWM"),
        )


def _cpu_of_thread(thread: int) -> float:
    fields = Path(f"/proc/self/task/{thread}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def _memory_gib(field: str) -> float:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[field].split()[0]) / 1024**2


def drive(address: str, at_a_time: int, kinds: dict[str, tuple[int, int]]) -> None:
    """Measure on the cluster there; `kinds` has numbers of trials and of epochs. Prints a line of JSON."""
    from orchestrator.cluster.connect import ClusterChoice, connect  # isort: skip - it sets what Ray reads

    import ray

    from lsmha.bench.random_data import random_dataset
    from lsmha.config import ModelConfig, TrainConfig
    from orchestrator.config.sweep import ResourcesConfig
    from orchestrator.execution.engine import TuneEngine

    gate = Path(os.environ["FORKED_WORKER_FOLDER"], "gate")
    arrays = ArraysWithoutTraining(random_dataset(train=1, num_classes=2, img_size=4).to_arrays(), gate)
    measured = []
    with (
        connect(ClusterChoice(address)) as capacity,
        TuneEngine(ray.put(arrays), storage=Path("/nowhere")) as engine,
    ):
        assert capacity.cpus == at_a_time, capacity
        line = engine._queue.line = StampedLine()
        for title, (trials, epochs) in kinds.items():
            recipe = TrainConfig(epochs=epochs, warmup_epochs=0)
            jobs = [TrainingJob(f"{title}{i}", ModelConfig(), recipe, Path("/nowhere")) for i in range(trials)]
            watch = Watch(engine, line, title, jobs, at_a_time, gate)
            engine.train(jobs, watch, resources=ResourcesConfig(), concurrency=at_a_time)
            measured.append(watch.measurement())
        actor_mib = statistics.median(_private_mib(process) for process in watch.processes)
        start = time.monotonic()
        engine.close()
        session = Session(at_a_time, actor_mib, time.monotonic() - start, _memory_gib("VmHWM"))
    print("MEASURED " + json.dumps([asdict(session), *map(asdict, measured)]))


def _private_mib(process: int) -> float:
    return float(psutil.Process(process).memory_full_info().uss / 2**20)


# ---- the cluster ------------------------------------------------------------------------------------------------


@contextmanager
def cluster_of(hosts: int, cpus: int) -> Iterator[str]:
    """So many hosts with `cpus` CPUs in all, besides a head with none; the address of the cluster."""
    with tempfile.TemporaryDirectory(dir=os.environ["RAY_TMPDIR"], ignore_cleanup_errors=True) as folder:
        os.environ["FORKED_WORKER_FOLDER"] = folder
        from ray.cluster_utils import Cluster

        common: dict[str, Any] = {
            "setup_worker_path": str(Path(__file__).with_name("forked_worker.py")),
            "object_store_memory": 80 * 2**20,
            "include_dashboard": False,
        }
        cluster = Cluster()
        try:
            cluster.add_node(num_cpus=0, _system_config=SYSTEM_CONFIG, **common)
            for number in range(hosts):
                cluster.add_node(num_cpus=cpus // hosts + (number < cpus % hosts), **common)
            yield cluster.address
        finally:
            cluster.shutdown()
            time.sleep(3)  # workers and their templates look once a second whether their node is there


def measure(at_a_time: int, options: argparse.Namespace) -> tuple[Session, list[Measurement]]:
    """Start a cluster, and a driver on it."""
    kinds = {
        "short": (options.trials_per_actor * at_a_time, 1),
        "long": (options.long_trials_per_actor * at_a_time, options.epochs),
    }
    measured = None
    with cluster_of(min(options.hosts, at_a_time), at_a_time) as address:
        command = [sys.executable, __file__, "--drive", json.dumps([address, at_a_time, kinds])]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as driver:
            assert driver.stdout is not None
            try:
                for line in driver.stdout:
                    if line.startswith("MEASURED "):
                        measured = json.loads(line.removeprefix("MEASURED "))
                    else:
                        print(line, end="", flush=True)
            except BaseException:
                driver.kill()
                raise
    if driver.returncode or measured is None:
        sys.exit(f"error: the driver ended with {driver.returncode}")
    session, *found = measured
    return Session(**session), [_measurement(content) for content in found]


def _measurement(content: dict[str, Any]) -> Measurement:
    """One that a driver told of."""
    quarters = [Quarter(**quarter) for quarter in content["quarters"]]
    spreads = {
        name: None if content[name] is None else Spread(**content[name])
        for name in ("trials_per_actor", "cold_waits_s", "warm_waits_s")
    }
    return Measurement(**{**content, **spreads, "quarters": quarters})


# ---- what comes out ---------------------------------------------------------------------------------------------


def trials_table(sessions: list[tuple[Session, list[Measurement]]]) -> Table:
    """Trials of one epoch: a column for each number at a time."""
    shorts = [(session, short) for session, (short, _) in sessions]
    rows = {
        "trials, each completed once": [f"{short.trials:,}" for _, short in shorts],
        "all in, s": [f"{short.seconds:.0f}" for _, short in shorts],
        "trials per second": [f"{short.trials / short.seconds:.1f}" for _, short in shorts],
        "by quarter": [_by_quarter(short, lambda one: f"{one.trials / one.seconds:.1f}") for _, short in shorts],
        "driver's CPU time per trial, ms, by quarter": [
            _by_quarter(short, lambda one: f"{1e3 * one.driver_cpu_s / one.trials:.1f}") for _, short in shorts
        ],
        "of it the controller's thread": [
            _by_quarter(short, lambda one: f"{1e3 * one.controller_cpu_s / one.trials:.1f}") for _, short in shorts
        ],
        "driver's memory after each quarter, GiB": [
            _by_quarter(short, lambda one: f"{one.resident_gib:.2f}") for _, short in shorts
        ],
        f"its peak, GiB (bound: {MEMORY_BOUND_GIB:g})": [f"{session.peak_gib:.2f}" for session, _ in shorts],
        "actors that worked": [f"{short.trials_per_actor.n}" for _, short in shorts],
        "trials per actor": [short.trials_per_actor.format("g") for _, short in shorts],
        "until all actors had begun, s": [f"{short.all_began_s:.0f}" for _, short in shorts],
        "from a trial's turn to its start, until then, s": [_format(short.cold_waits_s) for _, short in shorts],
        "the same, afterwards": [_format(short.warm_waits_s) for _, short in shorts],
        "private memory of an actor, MiB": [f"{session.actor_mib:.0f}" for session, _ in shorts],
        "end of `Tuner.fit`, s": [f"{session.close_s:.0f}" for session, _ in shorts],
    }
    header = ["at a time", *(f"{session.at_a_time}" for session, _ in shorts)]
    return Table(header, [[name, *cells] for name, cells in rows.items()])


def results_table(sessions: list[tuple[Session, list[Measurement]]]) -> Table:
    """Trials of many epochs, and the limit that follows from them."""
    header = [
        "at a time", "begun and not ended, at most", "trials", "results", "results per second here",
        "driver's CPU time per result, ms", "of it the controller's thread", "results per second that it could take",
        "shortest epoch, s",
    ]  # fmt: skip
    longs = [long for _, (_, long) in sessions]
    rows = [
        [
            f"{long.at_a_time}",
            f"{long.most_at_a_time}",
            f"{long.trials:,}",
            f"{long.results:,}",
            f"{long.results / long.seconds:.0f}",
            f"{1e3 * long.driver_cpu_s / long.results:.2f}",
            *_limits(long.at_a_time, _each(long)),
        ]
        for long in longs
    ]
    if len(longs) > 1:
        line = statistics.linear_regression([long.at_a_time for long in longs], [_each(long) for long in longs])
        each = line.intercept + EXTRAPOLATED * line.slope
        name = f"{EXTRAPOLATED:,}, on a line through these"
        rows.append([name, "", "", "", "", "", *_limits(EXTRAPOLATED, each)])
    return Table(header, rows)


def _each(measurement: Measurement) -> float:
    return measurement.controller_cpu_s / measurement.results


def _limits(at_a_time: int, each: float) -> tuple[str, str, str]:
    """What follows from the controller's time for each result."""
    return f"{1e3 * each:.2f}", f"{1 / each:.0f}", f"{2 * at_a_time * each:.1f}"


def _by_quarter(measurement: Measurement, told: Any) -> str:
    return ", ".join(told(quarter) for quarter in measurement.quarters)


def _format(spread: Spread | None) -> str:
    return "none" if spread is None else spread.format(".2f")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--at-a-time", type=int, nargs="+", default=[50, 200, 500], help="trials at a time, in turn")
    parser.add_argument("--trials-per-actor", type=int, default=20, help="of one epoch")
    parser.add_argument("--long-trials-per-actor", type=int, default=2, help="of many epochs")
    parser.add_argument("--epochs", type=int, default=25, help="of those")
    parser.add_argument("--hosts", type=int, default=5)
    parser.add_argument("--out", type=Path, help="stem of the files for the results")
    parser.add_argument("--drive", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.drive:
        drive(*json.loads(options.drive))
        return
    with tempfile.TemporaryDirectory(prefix="scale-", ignore_cleanup_errors=True) as folder:
        # Where Ray notes its address for whoever looks for a cluster here: nobody shall find these.
        os.environ["RAY_TMPDIR"] = folder
        sessions = [measure(at_a_time, options) for at_a_time in options.at_a_time]
    report = Report(
        title="Many trials at a time",
        protocol=f"Trials that train nothing, on {options.hosts} Ray nodes of this machine that claim a CPU for each "
        "trial at a time; the actors, the nodes and the driver share its cores. The first table is of trials of one "
        f"epoch from a cold start, the second of trials of {options.epochs} epochs after them, in the same actors. A "
        "trial of n epochs has n + 1 results. What the controller could take is what its thread alone would, with a "
        "CPU to itself; with the shortest epoch in the last column, so many trials at a time keep it busy for half of "
        "the time. Spreads are medians, with the lowest and the highest in brackets.",
        command=f"python benchmarks/scale.py --at-a-time {' '.join(map(str, options.at_a_time))}",
        tables=[trials_table(sessions), results_table(sessions)],
        results={
            "sessions": [session for session, _ in sessions],
            "measurements": [measurement for _, found in sessions for measurement in found],
        },
    )
    report.publish(options.out)


if __name__ == "__main__":
    main()
