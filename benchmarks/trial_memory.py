"""What trials on one node need of its memory, and whether they share the images.

    python benchmarks/trial_memory.py --out benchmarks/trial_memory

Workers of a sweep train at the same time on 50,000 images of 32x32, each in a process of a local Ray cluster. Meanwhile
Linux is asked what each process has: resident memory at its highest, of which the images in Ray's object store are
counted in every process that reads them, and the part that it shares with others. What an interpreter has that has only
imported torch is taken off.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

import psutil

from orchestrator.cluster.connect import ClusterChoice, connect  # isort: skip - it sets what Ray reads when it is imported
import ray

from lsmha.bench.random_data import random_dataset
from lsmha.bench.report import Report, Table
from lsmha.config import AugmentConfig, TrainConfig
from lsmha.models import VARIANTS
from orchestrator.config.sweep import ResourcesConfig
from orchestrator.execution.engine import TuneEngine
from orchestrator.execution.training_job import EpochEnded, Failed, TrainingEvent, TrainingJob

IMPORTS = "import torch; print(next(l.split()[1] for l in open('/proc/self/status') if l.startswith('VmHWM')))"


@dataclass
class Memory:
    """Of one process that trains, in MiB, each at its highest."""

    resident: float = 0.0
    shared: float = 0.0
    """Of the resident part, what other processes have mapped, too: the images in the object store among it."""


class Watch:
    """Notes the memory of all workers that this process has started, until it is stopped."""

    def __init__(self) -> None:
        self.found: dict[int, Memory] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> list[Memory]:
        self._stop.set()
        self._thread.join()
        return list(self.found.values())

    def _watch(self) -> None:
        while not self._stop.wait(0.2):
            # Of this script's own cluster: others on the machine may have workers, too.
            for process in psutil.Process().children(recursive=True):
                folder = Path(f"/proc/{process.pid}")
                try:
                    if b"ray::TrainingTrial" in (folder / "cmdline").read_bytes():
                        self._note(process.pid, (folder / "status").read_text(), folder / "smaps_rollup")
                except OSError:
                    continue

    def _note(self, process: int, status: str, rollup: Path) -> None:
        memory = self.found.setdefault(process, Memory())
        memory.resident = max(memory.resident, _kib(status, "VmHWM") / 1024)
        maps = rollup.read_text()
        memory.shared = max(memory.shared, (_kib(maps, "Shared_Clean") + _kib(maps, "Shared_Dirty")) / 1024)


def _kib(text: str, field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) if found else 0


def say(event: TrainingEvent) -> None:
    """Say what becomes of a job."""
    match event:
        case Failed():
            raise SystemExit(f"{event.job_id} failed: {event.failure.reason}")
        case EpochEnded():
            print(f"{event.job_id} {event.metrics['images_per_s']:.0f} images/s", flush=True)
        case _:
            print(f"{event.job_id} {type(event).__name__.lower()}", flush=True)


def measure(variant: str, images: int, workers: int) -> list[Memory]:
    """Memory of each of so many workers that train one epoch at the same time."""
    dataset = random_dataset(train=images, val=1000, test=1000, num_classes=10)
    model = VARIANTS[variant].model_copy(update={"attn_drop": 0.0})
    recipe = TrainConfig(epochs=1, augment=AugmentConfig(flip=True, translate=4))
    with tempfile.TemporaryDirectory() as folder, connect(ClusterChoice("local")):
        jobs = [
            TrainingJob(f"t{number:04d}", model, recipe, Path(folder, f"t{number}.pt")) for number in range(workers)
        ]
        watch = Watch()
        with TuneEngine(ray.put(dataset.to_arrays()), storage=Path(folder, "ray")) as engine:
            engine.train(jobs, say, resources=ResourcesConfig(cpus_per_trial=1), concurrency=workers)
        return watch.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", default="cct_2_3x2_32", choices=sorted(VARIANTS))
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="trials at the same time, in turn")
    parser.add_argument("--out", type=Path, help="stem of the files for the results")
    options = parser.parse_args()
    imported = subprocess.run([sys.executable, "-c", IMPORTS], check=True, capture_output=True, text=True).stdout
    torch_alone = int(imported) / 1024
    found = {workers: measure(options.variant, options.images, workers) for workers in options.workers}
    rows = [
        [
            str(workers),
            f"{memory.resident:,.0f}",
            f"{memory.resident - torch_alone:,.0f}",
            f"{memory.shared:,.0f}",
            "1,229",
        ]
        for workers, memories in found.items()
        for memory in memories
    ]
    header = ["trials at a time", "resident, MiB", "beyond torch alone, MiB", "of it shared, MiB", "bound, MiB"]
    report = Report(
        title="Memory of a trial",
        protocol=f"`{options.variant}`, batch 128, an epoch of {options.images:,} images of 32x32 "
        f"({options.images * 3072 / 2**20:,.0f} MiB) in Ray's object store; one row for each process, at its highest. "
        f"An interpreter that has imported torch has {torch_alone:,.0f} MiB.",
        command=f"python benchmarks/trial_memory.py --variant {options.variant} --images {options.images}",
        tables=[Table(header, rows)],
        results={"memory": [memory for memories in found.values() for memory in memories]},
    )
    report.publish(options.out)


if __name__ == "__main__":
    main()
