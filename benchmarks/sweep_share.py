"""How much of a sweep's wall time is spent in training steps: 100 trials of some 20 s, as a user runs them.

    python benchmarks/sweep_share.py DATA --out benchmarks/sweep_share

DATA is a folder or glob of images as Parquet. `lsmha-sweep run` searches on a cluster of its own; what its tables say
is added up: images trained over images per second are the steps, what is left of the epochs is their evaluation.
Capacity is the search's wall time, from the first proposal to the last record, times the trials at a time. The
remainder is latency, ends of batches at which a worker has no trial left, choice of kernels, start of processes,
checkpoints and records.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from lsmha.bench.report import Report, Table

SPACE = """
name: share
data: {{name: parquet, path: "{data}", max_train_images: {images}, val_fraction: 0.006}}
model: {{embed_dim: 128, mlp_ratio: 1.0, num_tokenizer_convs: 2, drop_path: 0.0, attn_drop: 0.0}}
train: {{epochs: {epochs}, batch_size: 128, warmup_epochs: 0.5, augment: {{flip: true, translate: 4}}}}
space:
  num_heads: [1, 2, 4, 8]
  depth: {{low: 1, high: 3}}
  learning_rate: {{low: 1.0e-4, high: 1.0e-2, log: true}}
search: {{num_trials: {trials}, suggestion_batch: {batch}}}
finalists: {{max_finalists: 0}}
analysis: {{enabled: false}}
committees: {{enabled: false}}
"""


@dataclass(frozen=True)
class Share:
    """Where the time of a search went; shares are of wall time times trials at a time."""

    trials: int
    concurrency: int
    wall_s: float
    trial_s_median: float
    """Epochs of a trial, evaluation included."""
    steps: float
    evaluation: float
    rest: float
    """Latency, workers without a trial, and what a trial does besides epochs."""
    front_s: float
    """What the rounds took afterwards, in which the front's latency is measured again: no part of the search."""
    front: int
    """Networks on it."""
    steps_with_rounds: float
    """Share of the steps where the time of the rounds counts, too."""


def sweep(data: str, trials: int, batch: int, images: int, epochs: int) -> Share:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        spec = folder / "space.yaml"
        spec.write_text(
            SPACE.format(data=Path(data).absolute(), trials=trials, batch=batch, images=images, epochs=epochs)
        )
        run = folder / "run"
        command = [sys.executable, "-m", "orchestrator.cli", "run", str(spec), "--out", str(run), "--address", "local"]
        subprocess.run(command, check=True)
        return share_of(run)


def share_of(run: Path) -> Share:
    """Of a run whose search is complete, and went on without a break."""
    trials, curves = (pd.read_parquet(run / f"{name}.parquet") for name in ("trials", "curves"))
    summary = json.loads((run / "summary.json").read_text())
    began = min(path.stat().st_mtime for path in (run / "records" / "batches").glob("*.json"))
    ended = {path.name.partition("-")[0]: path.stat().st_mtime for path in (run / "records" / "trials").glob("*.json")}
    measured = [path.stat().st_mtime for path in (run / "records" / "front_latency").glob("*.json")]
    searched = max(ended.values())
    wall = searched - began
    batch_size, cpus = 128, summary["hardware"]["cores"]
    steps_s = (summary["dataset"]["train_images"] // batch_size * batch_size / curves["images_per_s"]).sum()
    capacity_s = wall * cpus
    front_s = max(measured, default=searched) - searched
    return Share(
        trials=len(trials),
        concurrency=cpus,
        wall_s=wall,
        trial_s_median=float(trials["seconds"].median()),
        steps=float(steps_s / capacity_s),
        evaluation=float((curves["seconds"].sum() - steps_s) / capacity_s),
        rest=float(1 - curves["seconds"].sum() / capacity_s),
        front_s=front_s,
        front=len(measured),
        steps_with_rounds=float(steps_s / (capacity_s + front_s * cpus)),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="folder or glob of images as Parquet")
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--suggestion-batch", type=int, default=50, help="suggestions made together")
    parser.add_argument("--images", type=int, default=6000, help="training images")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--out", type=Path, help="stem of the files for the results")
    options = parser.parse_args()
    found = sweep(options.data, options.trials, options.suggestion_batch, options.images, options.epochs)
    row = [
        str(found.trials), str(found.concurrency), f"{found.trial_s_median:.1f}", f"{found.wall_s:.0f}",
        f"{found.steps:.1%}", f"{found.evaluation:.1%}", f"{found.rest:.1%}",
        f"{found.front_s:.0f} for {found.front} networks", f"{found.steps_with_rounds:.1%}",
    ]  # fmt: skip
    header = ["trials", "at a time", "s per trial (median)", "wall time, s", "in steps", "in evaluation", "rest",
              "then, in rounds, s", "in steps, rounds counted"]  # fmt: skip
    report = Report(
        title="A sweep's time",
        protocol=f"One search of {options.trials} trials on one CPU core each, as many at a time as there are cores, "
        f"{options.suggestion_batch} suggestions in a batch; {options.images:,} images, {options.epochs} epochs, "
        "1 to 3 blocks of width 128. Shares are of the wall time, from the first proposal to the last record, times "
        "the trials at a time. The rest is latency (nothing trains meanwhile), the ends of batches (a worker without "
        "a trial), the choice of kernels, checkpoints and records. What comes after the search is no part of it: "
        "rounds in which the front's latency is measured again take a time that does not grow with the trials.",
        command=f"python benchmarks/sweep_share.py DATA --trials {options.trials} "
        f"--suggestion-batch {options.suggestion_batch} --images {options.images} --epochs {options.epochs}",
        tables=[Table(header, [row])],
        results={"share": [found]},
    )
    report.publish(options.out)


if __name__ == "__main__":
    main()
