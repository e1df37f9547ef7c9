"""Training steps compiled, or replayed as CUDA graphs, beside eager ones, and when that pays.

    python benchmarks/training_modes.py --out benchmarks/training_modes

All modes train the same network by the same recipe, by turns, in one process. What a mode costs before its first step
is timed once, with torch's cache of compiled code empty, as it is for an architecture that the machine has not met.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import get_args

import torch

from lsmha.bench.random_data import random_dataset
from lsmha.bench.repeats import Spread, interleaved, ratios
from lsmha.bench.report import Report, Table
from lsmha.config import AugmentConfig, RunMode, TrainConfig
from lsmha.devices.environment import restart_with_environment
from lsmha.devices.hardware import default_device
from lsmha.devices.stopwatch import seconds_of
from lsmha.models import VARIANTS
from lsmha.training import Trainer


@dataclass(frozen=True)
class ModeSpeed:
    """Throughput of a mode beside the eager one."""

    variant: str
    mode: str
    precision: str
    preparation_s: float
    """Beyond what the eager mode takes before its first step."""
    images_per_s: Spread
    ratio: Spread
    """Of eager seconds over the mode's, repeat by repeat."""
    pays_after_steps: float | None
    """Steps until what was gained is what preparation took; None where it was not faster in each repeat."""


def measure(variant: str, *, batch_size: int, steps: int, repeats: int, device: torch.device) -> list[ModeSpeed]:
    model = VARIANTS[variant].model_copy(update={"attn_drop": 0.0})
    dataset = random_dataset(train=steps * batch_size, num_classes=model.num_classes)
    recipe = TrainConfig(
        epochs=1_000_000, batch_size=batch_size, learning_rate=1e-4, augment=AugmentConfig(flip=True, translate=4)
    )
    modes: list[RunMode] = [mode for mode in get_args(RunMode) if device.type == "cuda" or mode != "cuda-graph"]
    trainers = {
        mode: Trainer(model, recipe.model_copy(update={"mode": mode}), dataset, device=device) for mode in modes
    }
    first_s = {mode: seconds_of(trainer.run_epoch, device) for mode, trainer in trainers.items()}
    speeds = interleaved(
        {
            mode: partial(lambda trainer: trainer.run_epoch().images_per_s, trainer)
            for mode, trainer in trainers.items()
        },
        repeats,
    )
    found = []
    for mode in modes:
        speed, ratio = Spread.of(speeds[mode]), ratios(speeds[mode], speeds["eager"])
        preparation_s = max(0.0, first_s[mode] - first_s["eager"])
        gained_s = batch_size / Spread.of(speeds["eager"]).median - batch_size / speed.median
        found.append(
            ModeSpeed(
                variant=variant,
                mode=mode,
                precision=trainers[mode].state.plan.precision,
                preparation_s=preparation_s,
                images_per_s=speed,
                ratio=ratio,
                pays_after_steps=preparation_s / gained_s if ratio.low > 1 else None,
            )
        )
    return found


def _steps(number: float | None) -> str:
    return "not seen" if number is None else f"{number:,.0f}"


def main() -> None:
    restart_with_environment()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", default=["cct_2_3x2_32", "cct_7_3x1_32"], choices=sorted(VARIANTS))
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=4, help="steps of a measurement")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="stem of the files for the results")
    options = parser.parse_args()
    found: list[ModeSpeed] = []
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        for variant in options.variants:
            found += measure(
                variant,
                batch_size=options.batch_size,
                steps=options.steps,
                repeats=options.repeats,
                device=default_device(),
            )
            print(found[-1], flush=True)
    header = ["network", "mode", "computed in", "images/s", "speed over eager", "preparation, s", "pays after, steps"]
    rows = [
        [f"`{mode.variant}`", mode.mode, mode.precision, mode.images_per_s.format(",.0f"), mode.ratio.format(".2f"),
         "" if mode.mode == "eager" else f"{mode.preparation_s:.0f}",
         "" if mode.mode == "eager" else _steps(mode.pays_after_steps)]
        for mode in found
    ]  # fmt: skip
    report = Report(
        title="Compiled training",
        protocol=f"Batch {options.batch_size}, no dropout on attention weights; medians of {options.repeats} repeats "
        f"(lowest to highest), of {options.steps} steps each. Preparation is what the first epoch took longer than the "
        "eager one's, once.",
        command=f"python benchmarks/training_modes.py --batch-size {options.batch_size} --steps {options.steps} "
        f"--repeats {options.repeats}",
        tables=[Table(header, rows)],
        results={"modes": found},
    )
    report.publish(options.out)


if __name__ == "__main__":
    main()
