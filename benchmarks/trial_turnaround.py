"""How long nothing trains between one trial and the next; beside Ray Train inside Ray Tune, in the same run.

    python benchmarks/trial_turnaround.py --out benchmarks/trial_turnaround.md

Turnaround is the time from the end of a trial's last optimizer step to the start of its successor's first, with one
trial at a time. The last evaluation and checkpoint of the one trial, and the first forward and backward pass of the
other, are in it. All of them train the same networks on the same images by the same loop, on one local Ray cluster of
2 CPUs, and alternate:

- ours: `TuneEngine`, in batches as in a sweep, in one `Tuner.fit` for all of them.
- Train in Tune, as Ray documents it: a Tune trainable that runs a `TorchTrainer` with `TuneReportCallback`.
- Tune alone: a function trainable with `reuse_actors=True`, for information.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from itertools import count, pairwise
from pathlib import Path
from typing import Any

from orchestrator.cluster.local_cluster import WORKER_ENVIRONMENT  # isort: skip - it sets what Ray reads when it is imported

import ray
import ray.train
import torch
from ray import tune
from ray.train.torch import TorchTrainer, get_device
from rich.console import Console
from rich.markdown import Markdown

from lsmha.config import DataConfig, ModelConfig, TrainConfig
from lsmha.data import Dataset, load_dataset
from lsmha.devices.hardware import device_name
from lsmha.training import train
from lsmha.training.checkpoints import remove_checkpoint
from orchestrator.config.sweep import ResourcesConfig
from orchestrator.execution.engine import TuneEngine
from orchestrator.execution.training_job import Completed, Failed, TrainingEvent, TrainingJob

BOUNDS = {"one worker": 0.3, "DDP, 2 workers": 0.3}
RATIO_BOUND = 40


@dataclass
class Stamps:
    """When a job did what, in its worker; of rank 0."""

    begin: float = 0.0
    first_step: float = 0.0
    last_step: float = 0.0
    end: float = 0.0
    steps: int = 0


class ArraysThatStamp(dict[str, Any]):
    """The arrays of a data set. Where a worker unpickles them, optimizer steps and jobs leave time stamps from then on:
    so they are taken in the product's own tasks, which know nothing of it."""

    folder: str

    def __reduce__(self) -> Any:
        return _arrays_in_worker, (dict(self), self.folder)


def _arrays_in_worker(arrays: dict[str, Any], folder: str) -> dict[str, Any]:
    from orchestrator.execution import rank_group, trial

    train_jobs = trial.train_jobs
    if not hasattr(train_jobs, "stamps"):

        def stamped(jobs: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
            (job,) = jobs
            stamp("begin", job.id)
            for events in train_jobs(jobs, *args, **kwargs):
                stamp("end", job.id)  # the last one counts
                yield events

        stamp = stamped.stamps = _stamp_steps(folder)  # type: ignore[attr-defined]
        trial.train_jobs = rank_group.train_jobs = stamped
    return arrays


def _stamp_steps(folder: str) -> Callable[[str, str], None]:
    """Let every optimizer step in this process leave its times in a file; returns what stamps anything else."""
    import torch.distributed as dist
    from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

    file = open(Path(folder) / f"{os.getpid()}.txt", "a", buffering=1)  # noqa: SIM115 - for as long as the process

    def stamp(what: str, job: str = "-") -> None:
        rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
        file.write(f"{rank} {what} {job} {time.time()!r}\n")

    register_optimizer_step_pre_hook(lambda *_: stamp("step_begins"))
    register_optimizer_step_post_hook(lambda *_: stamp("step_ended"))
    return stamp


def read_stamps(folder: Path) -> dict[str, Stamps]:
    """Stamps by job, in the order of their first steps."""
    jobs: dict[str, Stamps] = {}
    for path in folder.glob("*.txt"):
        current = Stamps()
        for line in path.read_text().splitlines():
            rank, what, job, at = line.split()
            if rank != "0":
                continue
            match what:
                case "begin":
                    current = jobs[job] = Stamps(begin=float(at))
                case "end":
                    current.end = float(at)
                case "step_begins":
                    current.first_step = current.first_step or float(at)
                case "step_ended":
                    current.last_step, current.steps = float(at), current.steps + 1
    return dict(sorted(jobs.items(), key=lambda job: job[1].first_step))


# ---- the candidates --------------------------------------------------------------------------------------------


class Bench:
    """The cluster's data set, and jobs to train on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stamps = folder / "stamps"
        self.stamps.mkdir()
        (folder / "checkpoints").mkdir()
        self.dataset = load_dataset(DataConfig(name="digits", val_fraction=0.2, max_train_images=400))
        self.train = TrainConfig(epochs=1, batch_size=64, learning_rate=3e-3, warmup_epochs=0)
        self.arrays = ray.put(self.dataset.to_arrays())
        stamping = ArraysThatStamp(self.dataset.to_arrays())
        stamping.folder = str(self.stamps)
        self.engine = TuneEngine(ray.put(stamping), storage=folder / "workers")
        self._numbers = count()

    def jobs(self, how_many: int) -> list[TrainingJob]:
        """Jobs of different architectures, as a search makes them."""
        return [self._job(next(self._numbers), index) for index in range(how_many)]

    def _job(self, number: int, index: int) -> TrainingJob:
        data = self.dataset
        model = ModelConfig(
            embed_dim=24, depth=1 + index % 3, num_heads=(1, 4, 24)[index // 3 % 3], mlp_ratio=1.0,
            num_tokenizer_convs=1, drop_path=0.0, attn_drop=0.0,
            img_size=data.img_size, in_channels=data.in_channels, num_classes=data.num_classes,
        )  # fmt: skip
        recipe = self.train.model_copy(update={"seed": number})
        return TrainingJob(f"j{number:05d}", model, recipe, self.folder / "checkpoints" / f"j{number:05d}.pt")


def _as_a_driver(jobs: list[TrainingJob]) -> Callable[[TrainingEvent], None]:
    """What the driver of a sweep does of lasting effect, without its records."""
    checkpoints = {job.id: job.checkpoint for job in jobs}

    def on_event(event: TrainingEvent) -> None:
        if isinstance(event, Completed):
            remove_checkpoint(checkpoints[event.job_id])
        if isinstance(event, Failed):
            raise RuntimeError(f"{event.job_id} failed: {event.failure.reason}")

    return on_event


def ours(bench: Bench, batches: list[list[TrainingJob]], *, workers: int, gpus: float) -> None:
    resources = ResourcesConfig(workers_per_trial=workers, cpus_per_trial=workers, gpus_per_trial=gpus)
    for jobs in batches:
        bench.engine.train(jobs, _as_a_driver(jobs), resources=resources, concurrency=1)
    bench.engine.release()


def _loop(settings: dict[str, Any], device: torch.device, report: Callable[[Any, Any], None]) -> None:
    """The training loop of the plain candidates."""
    stamp = _stamp_steps_once(settings["stamps"])
    stamp("begin", settings["id"])
    if device.type == "cpu":
        torch.set_num_threads(1)
    train(
        ModelConfig.model_validate_json(settings["model"]),
        TrainConfig.model_validate_json(settings["train"]),
        Dataset.from_arrays(ray.get(settings["arrays"][0])),
        device=device,
        on_epoch_end=report,
    )
    stamp("end", settings["id"])


def _stamp_steps_once(folder: str) -> Callable[[str, str], None]:
    if not hasattr(torch, "_turnaround_stamp"):
        torch._turnaround_stamp = _stamp_steps(folder)
    return torch._turnaround_stamp


def _work_in_train(settings: dict[str, Any]) -> None:
    def report(state: Any, metrics: Any) -> None:
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = None
            if state.ranks.leads:
                state.save(Path(folder) / "state.pt")
                checkpoint = ray.train.Checkpoint.from_directory(folder)
            ray.train.report(metrics.asdict(), checkpoint=checkpoint)

    _loop(settings, get_device(), report)


def _train_in_tune(config: dict[str, Any], *, storage: str, workers: int, gpus: float) -> None:
    from ray.tune.integration.ray_train import TuneReportCallback

    TorchTrainer(
        _work_in_train,
        train_loop_config=config["job"],
        scaling_config=ray.train.ScalingConfig(num_workers=workers, use_gpu=gpus > 0),
        run_config=ray.train.RunConfig(
            name=config["job"]["id"], storage_path=storage, callbacks=[TuneReportCallback()]
        ),
    ).fit()


def _work_in_tune(config: dict[str, Any], *, gpus: float) -> None:
    def report(state: Any, metrics: Any) -> None:
        with tempfile.TemporaryDirectory() as folder:
            state.save(Path(folder) / "state.pt")
            tune.report(metrics.asdict(), checkpoint=tune.Checkpoint.from_directory(folder))

    _loop(config["job"], torch.device("cuda" if gpus else "cpu"), report)


def plain(
    bench: Bench, batches: list[list[TrainingJob]], *, trainable: Any, takes: dict[str, float], reuse: bool
) -> None:
    space = [
        {
            "id": job.id,
            "model": job.model.model_dump_json(),
            "train": job.train.model_dump_json(),
            "arrays": [bench.arrays],
            "stamps": str(bench.stamps),
        }
        for job in batches[0]
    ]
    results = tune.Tuner(
        tune.with_resources(trainable, takes),
        param_space={"job": tune.grid_search(space)},
        tune_config=tune.TuneConfig(max_concurrent_trials=1, reuse_actors=reuse),
        run_config=tune.RunConfig(name=batches[0][0].id, storage_path=str(bench.folder / "tune"), verbose=0),
    ).fit()
    if results.errors:
        raise results.errors[0]


# ---- what comes out ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Candidate:
    """One means to get from trial to trial."""

    workers: str
    name: str
    run: Callable[[Bench, list[list[TrainingJob]]], None]
    batches: int
    trials: int
    """In each batch."""


class Measured:
    """Turnarounds of one candidate, in seconds."""

    def __init__(self) -> None:
        self.cold: list[float] = []
        self.within: list[float] = []
        """From trial to trial of one worker, or, in the plain candidates, of one `Tuner.fit`."""
        self.between: list[float] = []
        """From the last trial of a batch to the first of the next."""
        self.without_ending: list[float] = []
        """`within`, without the evaluation and checkpoint of the one that ends."""
        self.parts: list[tuple[float, float, float]] = []

    def add(self, started: float, batches: list[list[TrainingJob]], stamps: dict[str, Stamps], steps: int) -> None:
        """Take the stamps of one round, which began at `started`."""
        # Tune takes grid points in order, and workers take jobs in order; but stamps know best.
        batch_of = {job.id: number for number, batch in enumerate(batches) for job in batch}
        ran = [(batch_of[job], stamped) for job, stamped in stamps.items() if job in batch_of]
        if len(ran) != len(batch_of) or any(stamped.steps != steps for _, stamped in ran):
            raise RuntimeError(f"expected {steps} steps of each of {len(batch_of)} jobs, got {ran}")
        self.cold.append(ran[0][1].first_step - started)
        for (batch, before), (next_batch, after) in pairwise(ran):
            turnaround = after.first_step - before.last_step
            if next_batch != batch:
                self.between.append(turnaround)
                continue
            self.within.append(turnaround)
            self.without_ending.append(after.first_step - before.end)
            self.parts.append((before.end - before.last_step, after.begin - before.end, after.first_step - after.begin))


def measure(bench: Bench, candidates: list[Candidate], rounds: int, console: Console) -> dict[Candidate, Measured]:
    measured = {candidate: Measured() for candidate in candidates}
    steps = len(bench.dataset.train) // bench.train.batch_size
    for number in range(rounds):
        for candidate in candidates:
            batches = [bench.jobs(candidate.trials) for _ in range(candidate.batches)]
            started = time.time()
            candidate.run(bench, batches)
            measured[candidate].add(started, batches, read_stamps(bench.stamps), steps)
            medians = statistics.median(measured[candidate].within)
            console.print(
                f"round {number + 1}/{rounds}: {candidate.workers}, {candidate.name}: median so far {medians:.3f} s, "
                f"{time.time() - started:.0f} s in all",
                highlight=False,
            )
    return measured


def _row(workers: str, what: str, values: list[float], bound: str = "") -> str:
    if not values:
        return f"| {workers} | {what} | 0 | | | | | {bound} |"
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    spread = f"{low:.3f} to {high:.3f} | {max(values):.3f} | {statistics.fmean(values):.3f}"
    return f"| {workers} | {what} | {len(values)} | {middle:.3f} | {spread} | {bound} |"


def table(measured: dict[Candidate, Measured]) -> Iterator[str]:
    yield "| workers | from trial to trial, s | n | median | quartiles | highest | mean | bound on the median |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    for candidate, found in measured.items():
        ours_ = candidate.name == "ours"
        bound = f"<= {BOUNDS[candidate.workers]:g}" if ours_ else ""
        yield _row(candidate.workers, f"{candidate.name}{', within a batch' if ours_ else ''}", found.within, bound)
        if ours_:
            yield _row(candidate.workers, "ours, from batch to batch", found.between)
            yield _row(candidate.workers, "ours, all of these", found.within + found.between, bound)
            yield _row(candidate.workers, "ours, within a batch, after evaluation and checkpoint", found.without_ending)
        yield _row(candidate.workers, f"{candidate.name}: from the call to the first step of all, cold", found.cold[:1])
        if found.cold[1:]:
            yield _row(candidate.workers, f"{candidate.name}: likewise, in later rounds", found.cold[1:])


def ratios(measured: dict[Candidate, Measured]) -> Iterator[str]:
    yield "| workers | Train in Tune over ours | ratio | bound |"
    yield "| --- | --- | --- | --- |"
    for workers in dict.fromkeys(candidate.workers for candidate in measured):
        by_name = {candidate.name: found for candidate, found in measured.items() if candidate.workers == workers}
        if {"ours", "Train in Tune"} <= by_name.keys():
            theirs, own = by_name["Train in Tune"].within, by_name["ours"]
            median = statistics.median(theirs) / statistics.median(own.within)
            mean = statistics.fmean(theirs) / statistics.fmean(own.within + own.between)
            yield f"| {workers} | medians, ours within a batch | {median:.0f} | >= {RATIO_BOUND} |"
            yield f"| {workers} | means, ours with its changes of batches | {mean:.1f} | |"


def parts(measured: dict[Candidate, Measured]) -> Iterator[str]:
    yield "| workers | candidate | evaluation and checkpoint | to the next job | its network, first passes |"
    yield "| --- | --- | --- | --- | --- |"
    for candidate, found in measured.items():
        medians = [statistics.median(values) for values in zip(*found.parts, strict=True)]
        yield f"| {candidate.workers} | {candidate.name} | " + " | ".join(f"{value:.3f}" for value in medians) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="turns of each candidate")
    parser.add_argument("--batches", type=int, default=4, help="batches of ours in a round")
    parser.add_argument("--trials", type=int, default=8, help="trials in a batch of ours")
    parser.add_argument("--plain-trials", type=int, default=5, help="trials of each plain candidate in a round")
    parser.add_argument("--gpus", type=int, default=0, help="GPUs of the cluster; DDP ranks take one each if it has 2")
    parser.add_argument("--quick", action="store_true", help="one round of few trials: does it work?")
    parser.add_argument("--out", type=Path, help="file for the tables")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.batches, options.trials, options.plain_trials = 1, 2, 4, 3
    console = Console()
    gpu, gpus = min(options.gpus, 1), (2 if options.gpus > 1 else 0)
    with tempfile.TemporaryDirectory(prefix="turnaround-", ignore_cleanup_errors=True) as temporary:
        folder = Path(temporary)
        # As orchestrator.cluster.connect.connect, but of so many CPUs wherever it runs.
        ray.init(
            address="local",
            num_cpus=2,
            num_gpus=options.gpus,
            resources={"waiting": 1},
            runtime_env={"env_vars": WORKER_ENVIRONMENT},
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
        )
        in_tune = partial(_train_in_tune, storage=str(folder / "train"))
        trials = {"batches": options.batches, "trials": options.trials}
        plain_trials = {"batches": 1, "trials": options.plain_trials}
        one, ddp = BOUNDS
        no_cpu = {"waiting": 1}  # its workers take the CPUs: with one for the trial that waits, 2 ranks would not fit
        candidates = [
            Candidate(one, "ours", partial(ours, workers=1, gpus=gpu), **trials),
            Candidate(one, "Train in Tune",
                partial(plain, trainable=partial(in_tune, workers=1, gpus=gpu), takes=no_cpu, reuse=False),
                **plain_trials),
            Candidate(one, "Tune alone, actors reused",
                partial(plain, trainable=partial(_work_in_tune, gpus=gpu), takes={"cpu": 1, "gpu": gpu}, reuse=True),
                **plain_trials),
            Candidate(ddp, "ours", partial(ours, workers=2, gpus=gpus), **trials),
            Candidate(ddp, "Train in Tune",
                partial(plain, trainable=partial(in_tune, workers=2, gpus=gpus), takes=no_cpu, reuse=False),
                **plain_trials),
        ]  # fmt: skip
        try:
            bench = Bench(folder)
            steps = len(bench.dataset.train) // bench.train.batch_size
            measured = measure(bench, candidates, options.rounds, console)
        finally:
            ray.shutdown()
    where = device_name(torch.device("cuda" if gpu else "cpu"))
    if gpu and not gpus:
        where += f" (DDP ranks on {device_name(torch.device('cpu'))})"
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "ray", "optuna"))
    lines = [
        "# From trial to trial",
        "",
        f"Turnaround: from the end of a trial's last optimizer step to the start of its successor's first, one trial "
        f"at a time; the last evaluation and checkpoint and the first forward and backward pass are in it. Digits, "
        f"embed_dim 24, 1 to 3 blocks, {steps} steps of {bench.train.batch_size} images a trial; {options.rounds} "
        f"round(s) in which the candidates alternate, on one Ray cluster of 2 CPUs.",
        "",
        f"{where}, {os.cpu_count()} cores; Python {platform.python_version()}, {versions}.",
        "",
        *table(measured),
        "",
        *ratios(measured),
        "",
        "What turnarounds within a batch consist of (medians, s):",
        "",
        *parts(measured),
    ]
    console.print(Markdown("\n".join(lines)))
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
