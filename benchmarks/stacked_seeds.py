"""Seeds of one network trained together, by stacked parameters, beside one after another.

    python benchmarks/stacked_seeds.py --seeds 8 --out benchmarks/stacked_seeds

Both train the same seeds for the same steps of the same recipe, by turns, in one process. The ratio is of the images
per second over all seeds, evaluation left out.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch

from lsmha.bench.random_data import random_dataset
from lsmha.bench.repeats import Spread, interleaved, ratios
from lsmha.bench.report import Report, Table
from lsmha.config import AugmentConfig, TrainConfig
from lsmha.devices.environment import restart_with_environment
from lsmha.devices.hardware import default_device
from lsmha.models import VARIANTS
from lsmha.training import EpochMetrics, StackedTrainer, Trainer


@dataclass(frozen=True)
class Together:
    """Throughput of some seeds together and one after another, in images per second over all of them."""

    variant: str
    batch_size: int
    """Of each seed."""
    seeds: int
    precision: str
    together: Spread
    one_by_one: Spread
    ratio: Spread


def measure(variant: str, batch_size: int, seeds: int, *, steps: int, repeats: int, device: torch.device) -> Together:
    model = VARIANTS[variant].model_copy(update={"attn_drop": 0.0})
    recipe = TrainConfig(
        epochs=1_000_000, batch_size=batch_size, learning_rate=1e-4, augment=AugmentConfig(flip=True, translate=4)
    )
    dataset = random_dataset(train=steps * batch_size, num_classes=model.num_classes)
    stack = StackedTrainer(model, recipe, range(seeds), dataset, device=device)
    alone = [Trainer(model, recipe.model_copy(update={"seed": seed}), dataset, device=device) for seed in range(seeds)]

    def together() -> float:
        outcomes = stack.run_epoch()
        assert isinstance(outcomes[0], EpochMetrics), outcomes[0]
        return seeds * outcomes[0].images_per_s  # the first is evaluated first: its time is that of the steps

    def one_by_one() -> float:
        seconds = sum(1 / trainer.run_epoch().images_per_s for trainer in alone)
        return seeds / seconds

    candidates = {"together": together, "one by one": one_by_one}
    for run in candidates.values():
        run()
    speeds = interleaved(candidates, repeats)
    return Together(
        variant=variant,
        batch_size=batch_size,
        seeds=seeds,
        precision=stack.states[0].plan.precision,
        together=Spread.of(speeds["together"]),
        one_by_one=Spread.of(speeds["one by one"]),
        ratio=ratios(speeds["together"], speeds["one by one"]),
    )


def main() -> None:
    restart_with_environment()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", default=["cct_2_3x2_32", "cct_7_3x1_32"], choices=sorted(VARIANTS))
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[8, 128])
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=4, help="steps of a measurement")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="stem of the files for the results")
    options = parser.parse_args()
    device = default_device()
    found = []
    for variant in options.variants:
        for batch_size in options.batch_sizes:
            found.append(
                measure(variant, batch_size, options.seeds, steps=options.steps, repeats=options.repeats, device=device)
            )
            print(found[-1], flush=True)
    header = [
        "network",
        "batch of a seed",
        "seeds",
        "computed in",
        "together, images/s",
        "one by one, images/s",
        "ratio",
    ]
    rows = [
        [f"`{speed.variant}`", str(speed.batch_size), str(speed.seeds), speed.precision, speed.together.format(",.0f"),
         speed.one_by_one.format(",.0f"), speed.ratio.format(".2f")]
        for speed in found
    ]  # fmt: skip
    report = Report(
        title="Seeds trained together",
        protocol=f"{options.seeds} seeds, no attention dropout, medians of {options.repeats} repeats (lowest to "
        "highest) of so many steps each: " + str(options.steps) + ".",
        command=f"python benchmarks/stacked_seeds.py --seeds {options.seeds} "
        f"--batch-sizes {' '.join(map(str, options.batch_sizes))} --steps {options.steps} --repeats {options.repeats}",
        tables=[Table(header, rows)],
        results={"together": found},
    )
    report.publish(options.out)


if __name__ == "__main__":
    main()
