"""Whether what makes training fast costs accuracy: lsmha as it trains by default, and vit-pytorch in plain fp32.

    python benchmarks/equal_accuracy.py DATA --out benchmarks/equal_accuracy

DATA is a folder or glob of CIFAR-10 as Parquet. Both train the same network for the same epochs, by the same optimizer,
learning rates and augmentation, with the same seeds. lsmha computes in what `precision: auto` chooses, and without
dropout on attention weights, as its own recipes; vit-pytorch in float32 with that dropout, as published. Nothing is
selected, so that accuracy is that of the test set after the last epoch.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from lsmha.bench.baselines import vit_pytorch_cct
from lsmha.bench.report import Report, Table
from lsmha.config import AugmentConfig, DataConfig, ModelConfig, TrainConfig
from lsmha.data import Augmentation, Dataset, load_dataset
from lsmha.devices.environment import restart_with_environment
from lsmha.devices.hardware import default_device
from lsmha.models import VARIANTS
from lsmha.training import evaluate, train
from lsmha.training.optimization import build_optimizer, learning_rate_at


@dataclass(frozen=True)
class Run:
    """One network trained to the end."""

    candidate: str
    seed: int
    test_accuracy: float


def train_plainly(network: nn.Module, recipe: TrainConfig, dataset: Dataset, device: torch.device) -> None:
    """The loop that a user writes, in float32."""
    network.to(device).train()
    optimizer = build_optimizer(network.named_parameters(), recipe)
    augment = Augmentation(recipe.augment, dataset.mean, dataset.std, dataset.num_classes)
    images, labels = dataset.train.images.to(device), dataset.train.labels.to(device)
    steps = len(labels) // recipe.batch_size
    for epoch in range(recipe.epochs):
        order = torch.randperm(len(labels), device=device)
        for step in range(steps):
            batch = order[step * recipe.batch_size : (step + 1) * recipe.batch_size]
            for group in optimizer.param_groups:
                group["lr"] = learning_rate_at(
                    epoch * steps + step, total_steps=recipe.epochs * steps, steps_per_epoch=steps, config=recipe
                )
            inputs, targets = augment(images[batch], labels[batch])
            loss = F.cross_entropy(network(inputs), targets, label_smoothing=recipe.label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def run_of(candidate: str, model: ModelConfig, recipe: TrainConfig, dataset: Dataset, device: torch.device) -> Run:
    network: nn.Module
    if candidate == "lsmha":
        undropped = model.model_copy(update={"attn_drop": 0.0})
        network = train(undropped, recipe, dataset, device=device).evaluated_model
    else:
        torch.manual_seed(recipe.seed)
        network = vit_pytorch_cct(model)
        train_plainly(network, recipe, dataset, device)
    return Run(candidate, recipe.seed, evaluate(network, dataset.test, dataset, device=device).accuracy)


def summary(runs: list[Run]) -> Table:
    """Mean and spread over the seeds."""
    rows = []
    for candidate in dict.fromkeys(run.candidate for run in runs):
        found = [run.test_accuracy for run in runs if run.candidate == candidate]
        rows.append(
            [candidate, f"{statistics.mean(found):.4f}", f"{statistics.stdev(found):.4f}" if len(found) > 1 else "",
             ", ".join(f"{accuracy:.4f}" for accuracy in found), str(len(found))]
        )  # fmt: skip
    header = ["candidate", "mean test accuracy", "standard deviation", "by seed", "seeds"]
    return Table(header, rows)


def main() -> None:
    restart_with_environment()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="folder or glob of CIFAR-10 as Parquet")
    parser.add_argument("--variant", default="cct_2_3x2_32", choices=sorted(VARIANTS))
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--max-train-images", type=int, help="train on so many images only")
    parser.add_argument("--out", type=Path, help="stem of the files for the results")
    options = parser.parse_args()
    device = default_device()
    dataset = load_dataset(DataConfig(name="parquet", path=options.data, max_train_images=options.max_train_images))
    model = VARIANTS[options.variant].model_copy(update={"num_classes": dataset.num_classes})
    runs: list[Run] = []
    for seed in options.seeds:
        recipe = TrainConfig(epochs=options.epochs, seed=seed, augment=AugmentConfig(flip=True, translate=4))
        for candidate in ("lsmha", "vit-pytorch"):
            runs.append(run_of(candidate, model, recipe, dataset, device))
            print(runs[-1], flush=True)
    report = Report(
        title="Accuracy after equal epochs",
        protocol=f"`{options.variant}` on {len(dataset.train):,} images of CIFAR-10, {options.epochs} epochs, batch "
        f"128, AdamW at 1e-3 with warm-up and cosine, flips and shifts; accuracy on the {len(dataset.test):,} test "
        "images after the last epoch. lsmha trains by its defaults (`precision: auto`, `attention: auto`) without "
        "dropout on attention weights, vit-pytorch's network in float32 with the published dropout of 0.1.",
        command=f"python benchmarks/equal_accuracy.py DATA --variant {options.variant} --epochs {options.epochs} "
        f"--seeds {' '.join(map(str, options.seeds))}"
        + (f" --max-train-images {options.max_train_images}" if options.max_train_images else ""),
        tables=[summary(runs)],
        results={"runs": runs},
    )
    report.publish(options.out)


if __name__ == "__main__":
    main()
