"""Which part of a training step the images take: gathered, augmented and normalized in batches, on the device.

    python benchmarks/loader_share.py --out benchmarks/loader_share

Epochs of training and passes over the same batches that only prepare them alternate in one process. The share is the
seconds of a pass over those of the epoch before it.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from lsmha.bench.random_data import random_dataset
from lsmha.bench.repeats import Spread, interleaved, ratios
from lsmha.bench.report import Report, Table
from lsmha.config import AugmentConfig, TrainConfig
from lsmha.devices.environment import restart_with_environment
from lsmha.devices.hardware import default_device
from lsmha.devices.stopwatch import seconds_of
from lsmha.models import VARIANTS
from lsmha.training import Trainer

AUGMENTATIONS = {
    "flips and shifts": AugmentConfig(flip=True, translate=4),
    "RandAugment, erasing, mixup or cutmix": AugmentConfig(
        flip=True, translate=4, randaugment_ops=2, random_erasing=0.25, mixup_alpha=0.8, cutmix_alpha=1.0
    ),
}


@dataclass(frozen=True)
class Share:
    """What preparing batches takes of an epoch."""

    variant: str
    augmentation: str
    images_per_s: Spread
    """Of training."""
    share: Spread


def prepare_only(trainer: Trainer, device: torch.device) -> float:
    """Seconds to prepare the batches of an epoch."""

    def prepare() -> None:
        state = trainer.state
        for _ in trainer.batches.of_epoch(seed=state.config.seed, epoch=state.epoch + 1, ranks=state.ranks):
            pass

    return seconds_of(prepare, device)


def share_of(variant: str, augmentation: str, *, steps: int, repeats: int, device: torch.device) -> Share:
    model = VARIANTS[variant].model_copy(update={"attn_drop": 0.0})
    recipe = TrainConfig(epochs=1_000_000, augment=AUGMENTATIONS[augmentation])
    images = steps * recipe.batch_size
    trainer = Trainer(model, recipe, random_dataset(train=images, num_classes=model.num_classes), device=device)

    def train() -> float:
        return images / trainer.run_epoch().images_per_s

    prepare = partial(prepare_only, trainer, device)
    train(), prepare()
    seconds = interleaved({"train": train, "prepare": prepare}, repeats)
    speed = Spread.of([images / train_s for train_s in seconds["train"]])
    return Share(variant, augmentation, speed, ratios(seconds["prepare"], seconds["train"]))


def main() -> None:
    restart_with_environment()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", default=["cct_2_3x2_32", "cct_7_3x1_32"], choices=sorted(VARIANTS))
    parser.add_argument("--steps", type=int, default=10, help="steps of an epoch")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="stem of the files for the results")
    options = parser.parse_args()
    device = default_device()
    shares = []
    for variant in options.variants:
        for augmentation in AUGMENTATIONS:
            shares.append(share_of(variant, augmentation, steps=options.steps, repeats=options.repeats, device=device))
            print(shares[-1], flush=True)
    bound = "2 %" if device.type == "cuda" else "5 %"
    rows = [
        [f"`{share.variant}`", share.augmentation, share.images_per_s.format(",.0f"), share.share.format(".2%"), bound]
        for share in shares
    ]
    report = Report(
        title="The images' share of a training step",
        protocol=f"Batch 128, {options.steps} steps an epoch, medians of {options.repeats} repeats (lowest to highest) "
        "of seconds to gather, augment and normalize an epoch's batches over those of training it.",
        command=f"python benchmarks/loader_share.py --steps {options.steps} --repeats {options.repeats}",
        tables=[Table(["network", "augmentation", "images/s of training", "share", "bound"], rows)],
        results={"shares": shares},
    )
    report.publish(options.out)


if __name__ == "__main__":
    main()
