"""What a long sweep costs besides its training: the same `lsmha-sweep run`, with training that does nothing.

    python benchmarks/sweep_overhead.py --out benchmarks/sweep_overhead.md

A driver process runs the command line's own code; only `train_jobs`, in the actors, is replaced by a function that
makes seeded metrics up. Few architectures and a continuous learning rate: latency is measured in the first
batches and known from then on. The driver is watched from outside: its CPU time and memory (`/proc`), the records that
it wrote, and the memory of all processes of its cluster. Then `status`, `front` and `resume` are timed on the folder
that it left.

With `--profile`, the driver also profiles itself in two stretches, early and late, and what grew is printed; times are
not to be compared with those of a run without.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import math
import os
import platform
import pstats
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

BOUNDS = {"growth": 1.5, "memory_gib": 1.5, "command_s": 2.0}
TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")

SPACE = """
name: overhead
data: {{name: digits, val_fraction: 0.2}}
model: {{mlp_ratio: 1.0, num_tokenizer_convs: 1, drop_path: 0.0, attn_drop: 0.0}}
train: {{epochs: {epochs}, batch_size: 64, warmup_epochs: 0}}
space:
  embed_dim: [24, 48]
  num_heads: [1, 4, 24]
  depth: {{low: 1, high: 2}}
  learning_rate: {{low: 1.0e-4, high: 1.0e-2, log: true}}
search: {{sampler: {sampler}, num_trials: {trials}}}
latency: {{warmup_s: 0, min_iterations: 3, max_seconds: 0.01, target_spread: 1.0, rounds: 1}}
finalists: {{max_finalists: 0}}
analysis: {{enabled: false}}
committees: {{enabled: false}}
"""


# ---- the driver: a process of its own ---------------------------------------------------------------------------


class ArraysWithoutTraining(dict[str, Any]):
    """The arrays of a data set. An actor that unpickles them trains no more: it makes results up."""

    def __reduce__(self) -> Any:
        return _arrays_in_worker, (dict(self),)


def _arrays_in_worker(arrays: dict[str, Any]) -> dict[str, Any]:
    from orchestrator.execution import trial
    from orchestrator.execution.training_job import Completed, EpochEnded, TrainingResult

    def no_training(jobs: Any, dataset: Any, *, device: Any, threads: int) -> Iterator[list[Any]]:
        (job,) = jobs
        chance = random.Random(job.id)
        best = 0.9 - 0.3 / job.model.depth / math.log(job.model.embed_dim) - 0.01 / job.model.num_heads
        best -= 0.05 * (math.log10(job.train.learning_rate) + 2.7) ** 2 + chance.gauss(0, 0.01)
        curve = []
        for epoch in range(1, job.train.epochs + 1):
            accuracy = min(1.0, max(0.0, best * (1 - 0.7 ** (epoch + 2))))
            curve.append(
                {
                    "epoch": epoch,
                    "train_loss": 2 * (1 - accuracy),
                    "val_loss": 2.1 * (1 - accuracy),
                    "val_accuracy": accuracy,
                    "learning_rate": job.train.learning_rate,
                    "seconds": chance.uniform(0.9, 1.1),
                    "images_per_s": chance.uniform(900, 1100),
                }
            )
            if epoch < job.train.epochs:
                yield [EpochEnded(job.id, curve[-1])]
        result = TrainingResult(tuple(curve), "fp32", "sdpa", "cpu")
        yield [EpochEnded(job.id, curve[-1]), Completed(job.id, result)]

    trial.train_jobs = no_training
    return arrays


def drive(arguments: list[str], profile: Path | None, trials: int) -> None:
    """Be the driver: `lsmha-sweep` with these arguments, without training."""
    from lsmha.data import Dataset
    from orchestrator import cli

    to_arrays = Dataset.to_arrays
    Dataset.to_arrays = lambda self: ArraysWithoutTraining(to_arrays(self))  # type: ignore[method-assign]
    if profile is not None:
        _profile_stretches(profile, stretches(trials))
    sys.argv = ["lsmha-sweep", *arguments]
    cli.main()


def _profile_stretches(folder: Path, wanted: dict[str, tuple[int, int]]) -> None:
    """Profile the driver's main thread from the proposal of one trial to that of another, for each of two stretches."""
    from orchestrator.run_folder.ledger import Ledger
    from orchestrator.run_folder.records import SuggestionBatch

    add = Ledger.add
    profiles = {name: cProfile.Profile() for name in wanted}
    running: dict[str, int] = {}

    def noticed(self: Any, record: Any) -> None:
        add(self, record)
        if not isinstance(record, SuggestionBatch):
            return
        for name, (low, high) in wanted.items():
            if name not in running and low <= record.first < high:
                running[name] = record.first
                profiles[name].enable()
            # The last batch has no successor.
            elif name in running and record.first + 2 * len(record.points) > high and name in profiles:
                profile = profiles.pop(name)
                profile.disable()
                profile.dump_stats(folder / f"{name}.prof")
                (folder / f"{name}.trials").write_text(str(record.first - running[name]))

    Ledger.add = noticed  # type: ignore[method-assign]


def stretches(trials: int) -> dict[str, tuple[int, int]]:
    """The trials to compare: from and to. The first ones are left out: they measure latency and start workers."""
    length = min(200, trials // 4)
    first = min(100, trials // 4)
    return {"start": (first, first + length), "end": (trials - length, trials)}


# ---- watching it ------------------------------------------------------------------------------------------------


@dataclass
class Watched:
    """What was seen of a driver, sample by sample."""

    trials: list[int] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    rss: dict[int, float] = field(default_factory=dict)
    """Resident GiB of the driver by trials done."""
    peak_gib: float = 0.0
    cluster_gib: float = 0.0
    """Most of all processes together, each shared page counted once."""
    processes: int = 0
    first_new_batch_s: float | None = None

    def between(self, low: int, high: int) -> tuple[float, float]:
        """CPU and wall seconds per trial, from one number of records to another."""
        ends = [self._at(number) for number in (low, high)]
        return (ends[1][0] - ends[0][0]) / (high - low), (ends[1][1] - ends[0][1]) / (high - low)

    def _at(self, number: int) -> tuple[float, float]:
        """CPU and wall seconds when so many records were there, between the samples before and after."""
        after = min(bisect_left(self.trials, number), len(self.trials) - 1)
        before = max(0, after - 1)
        done = self.trials[after] - self.trials[before]
        part = (number - self.trials[before]) / done if done else 1.0
        return tuple(values[before] + part * (values[after] - values[before]) for values in (self.cpu, self.wall))  # type: ignore[return-value]


def watch(command: list[str], run: Path, log: Path, *, stop_at_new_batch: bool = False) -> Watched:
    """Run a driver to its end, or until it has made a proposal that no earlier session made."""
    watched = Watched()
    batches_before = _count(run / "records" / "batches")
    with open(log, "a") as output:
        started = time.monotonic()
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        _observe(process, run, watched, started, batches_before, stop_at_new_batch=stop_at_new_batch)
    finally:
        if stop_at_new_batch or sys.exc_info()[0] is not None:
            process.send_signal(signal.SIGINT)
            process.wait()
    if stop_at_new_batch:
        return watched
    if code := process.wait():
        raise RuntimeError(f"the driver ended with {code}:\n{log.read_text()[-3000:]}")
    return watched


def _observe(
    process: subprocess.Popen[bytes], run: Path, watched: Watched, started: float, batches_before: int, *,
    stop_at_new_batch: bool,
) -> None:  # fmt: skip
    next_look = 0.0
    while process.poll() is None:
        now = time.monotonic() - started
        try:
            cpu, resident, peak = _of_process(process.pid)
        except (OSError, KeyError):  # it has just ended
            break
        watched.peak_gib = max(watched.peak_gib, peak)
        trials = _count(run / "records" / "trials")
        if not watched.trials or trials > watched.trials[-1]:
            watched.trials.append(trials)
            watched.wall.append(now)
            watched.cpu.append(cpu)
            watched.rss[trials] = resident
        if watched.first_new_batch_s is None and _count(run / "records" / "batches") > batches_before:
            watched.first_new_batch_s = now
            if stop_at_new_batch:
                return
        if now > next_look:  # it costs as much as a trial
            family = _family(process.pid)
            memory = sum(map(_proportional_gib, family))
            if memory > watched.cluster_gib:
                watched.cluster_gib, watched.processes = memory, len(family)
            next_look = now + 15
        time.sleep(0.2)


def _count(folder: Path) -> int:
    try:
        return sum(name.endswith(".json") and not name.startswith(".") for name in os.listdir(folder))
    except FileNotFoundError:
        return 0


def _of_process(pid: int) -> tuple[float, float, float]:
    """CPU seconds of a process and of the children it waited for, GiB resident now and at most."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    resident, peak = (int(status[name].split()[0]) / 1024**2 for name in ("VmRSS", "VmHWM"))
    return (int(fields[11]) + int(fields[12])) / TICKS, resident, peak


def _family(pid: int) -> list[int]:
    """A process and all that descend from it."""
    parents: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        parents.setdefault(parent, []).append(int(path.parent.name))
    found = [pid]
    for process in found:
        found += parents.get(process, [])
    return found


def _proportional_gib(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024**2


def command_seconds(name: str, run: Path, repeats: int = 3) -> float:
    """Median wall time of a command of `lsmha-sweep` on the run, each in a fresh process."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "orchestrator.cli", name, str(run)], check=True, capture_output=True)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


# ---- what comes out ---------------------------------------------------------------------------------------------


def measure(sampler: str, options: argparse.Namespace, folder: Path) -> Iterator[tuple[str, str, str]]:
    """Rows of one sampler: what, value, bound."""
    trials = options.trials
    space, run, log = folder / f"{sampler}.yaml", folder / sampler, folder / f"{sampler}.log"
    space.write_text(SPACE.format(sampler=sampler, trials=trials, epochs=options.epochs))
    own = [sys.executable, __file__, "--drive", "--trials", str(trials)]
    profile = folder / f"{sampler}-profile"
    if options.profile:
        profile.mkdir()
        own += ["--profile-into", str(profile)]
    watched = watch([*own, "--", "run", str(space), "--out", str(run), "--address", "local"], run, log)
    summary = json.loads((run / "summary.json").read_text())
    if summary["trials"] != {"completed": trials, "failed": 0}:
        raise RuntimeError(f"expected {trials} completed trials, got {summary['trials']}")
    (early, late) = stretches(trials).values()
    (cpu_early, wall_early), (cpu_late, wall_late) = watched.between(*early), watched.between(*late)
    growth, memory, at_most = (f"<= {bound:g}" for bound in BOUNDS.values())
    spans = [f"trials {low:,} to {high:,}" for low, high in (early, late)]
    yield f"driver's CPU time per trial, {spans[0]}, ms", f"{1e3 * cpu_early:.1f}", ""
    yield f"driver's CPU time per trial, {spans[1]}, ms", f"{1e3 * cpu_late:.1f}", ""
    yield "end over start", f"{cpu_late / cpu_early:.2f}", growth
    yield f"wall time per trial, {spans[0]}, ms", f"{1e3 * wall_early:.1f}", ""
    yield f"wall time per trial, {spans[1]}, ms", f"{1e3 * wall_late:.1f}", ""
    yield "end over start", f"{wall_late / wall_early:.2f}", growth
    yield "the whole run, s", f"{watched.wall[-1]:.0f}", ""
    yield "resident memory of the driver at its highest, GiB", f"{watched.peak_gib:.2f}", memory
    middle = min(watched.rss, key=lambda done: abs(done - early[0]))
    grown = 1024 * (watched.rss[max(watched.rss)] - watched.rss[middle])
    yield f"its growth from trial {middle:,} to the end, MiB", f"{grown:.0f}", ""
    yield (
        f"memory of all {watched.processes} processes, Ray's too, shared pages once, GiB",
        f"{watched.cluster_gib:.2f}",
        "",
    )
    yield "configurations on the front", f"{len(summary['front'])}", ""
    for name in ("status", "front"):
        yield f"`lsmha-sweep {name}`, median of 3, s", f"{command_seconds(name, run):.2f}", at_most
    empty = folder / "empty.yaml"
    empty.write_text(space.read_text())
    arguments = ["--", "run", str(empty), "--out", str(folder / f"{sampler}-new"), "--address", "local"]
    fresh = watch([*own[:5], *arguments], folder / f"{sampler}-new", log, stop_at_new_batch=True)
    more = ["--", "resume", str(run), "--address", "local", "--set", f"search.num_trials={trials + 64}"]
    again = watch([*own[:5], *more], run, log, stop_at_new_batch=True)
    assert fresh.first_new_batch_s is not None
    assert again.first_new_batch_s is not None
    yield "`run` of a new folder until the first proposals, s", f"{fresh.first_new_batch_s:.1f}", ""
    yield f"`resume` of {trials:,} trials until the next ones, s", f"{again.first_new_batch_s:.1f}", ""
    if options.profile:
        for line in grown_functions(profile):
            print(line)


def grown_functions(folder: Path, top: int = 15) -> Iterator[str]:
    """Functions by what they came to cost more at the end than at the start, cumulative, per trial."""
    costs: dict[str, dict[tuple[str, int, str], float]] = {}
    for name in ("start", "end"):
        trials = int((folder / f"{name}.trials").read_text())
        stats = pstats.Stats(str(folder / f"{name}.prof")).stats  # type: ignore[attr-defined]
        costs[name] = {place: 1e3 * numbers[3] / trials for place, numbers in stats.items()}
    for title, order in (
        ("costliest at the end", lambda place: -costs["end"][place]),
        ("grown most", lambda place: costs["start"].get(place, 0) - costs["end"][place]),
    ):
        yield f"{title}: cumulative ms per trial, start and end"
        for place in sorted(costs["end"], key=order)[:top]:
            file, line, function = place
            where = "/".join(Path(file).parts[-2:])
            yield f"  {costs['start'].get(place, 0):8.2f} {costs['end'][place]:8.2f}  {where}:{line} {function}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=10, help="epochs in the curve of each trial")
    parser.add_argument("--samplers", default="tpe,random")
    parser.add_argument("--quick", action="store_true", help="80 trials: does it work?")
    parser.add_argument("--profile", action="store_true", help="print what the driver's time goes to, and what grows")
    parser.add_argument("--keep", type=Path, help="folder for the runs; by default they are removed")
    parser.add_argument("--out", type=Path, help="file for the table")
    parser.add_argument("--drive", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--profile-into", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("arguments", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.drive:
        drive(options.arguments, options.profile_into, options.trials)
        return

    import torch
    from rich.console import Console
    from rich.markdown import Markdown

    from lsmha.devices.hardware import device_name

    if options.quick:
        options.trials = 80
    console = Console()
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "ray", "optuna"))
    lines = [
        "# Overhead of a long sweep",
        "",
        f"`lsmha-sweep run` of {options.trials:,} trials of {options.epochs} epochs whose training does nothing; 12 "
        f"architectures and a continuous learning rate. Per trial: by the driver's CPU and wall time, over the trials "
        f"named.",
        "",
        f"{device_name(torch.device('cpu'))}, {os.cpu_count()} cores; Python {platform.python_version()}, {versions}.",
        "",
        "| sampler | what | measured | bound |",
        "| --- | --- | --- | --- |",
    ]
    with tempfile.TemporaryDirectory(prefix="overhead-", ignore_cleanup_errors=True) as temporary:
        folder = (options.keep or Path(temporary)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        for sampler in options.samplers.split(","):
            for what, measured, bound in measure(sampler, options, folder):
                console.print(f"{sampler}: {what}: {measured}{f' ({bound})' if bound else ''}", highlight=False)
                lines.append(f"| {sampler} | {what} | {measured} | {bound} |")
    console.print(Markdown("\n".join(lines)))
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
