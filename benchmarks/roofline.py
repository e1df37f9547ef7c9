"""How far a training step is from what the device could do: operations, bytes, the floor, the gap.

    python benchmarks/roofline.py --out benchmarks/roofline

The floor of a step is the longer one of two times. Arithmetic: 6 operations for each multiply-accumulate of the forward
pass (2 forward, 4 backward), at the rate of a large matrix product in the type that the step computes in. Memory: what
the backward pass needs of the forward pass is written once and read once, at the rate of a large copy. Both rates are
measured by turns with the step, in the same process. Model FLOP utilization is the part of that rate of arithmetic that
the step comes to, all of its work counted.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional as F

from lsmha.bench.random_data import random_dataset
from lsmha.bench.repeats import Spread, interleaved
from lsmha.bench.report import Report, Table
from lsmha.config import ModelConfig, TrainConfig
from lsmha.devices.environment import restart_with_environment
from lsmha.devices.hardware import default_device
from lsmha.devices.stopwatch import seconds_of
from lsmha.models import VARIANTS, model_cost
from lsmha.training import Trainer


@dataclass(frozen=True)
class Step:
    """One training step beside its floor."""

    variant: str
    num_heads: int
    precision: str
    attention: str
    gigaoperations: float
    saved_mib: float
    """What the forward pass keeps for the backward one."""
    gigaoperations_per_s: float
    """Of a large matrix product."""
    gigabytes_per_s: float
    """Of a large copy, reading and writing counted."""
    arithmetic_ms: float
    memory_ms: float
    step_ms: Spread

    @property
    def gap(self) -> float:
        """The step's time over its floor."""
        return self.step_ms.median / max(self.arithmetic_ms, self.memory_ms)

    @property
    def utilization(self) -> float:
        """Model FLOP utilization, 0 to 1, of the measured rate of a large matrix product."""
        return self.arithmetic_ms / self.step_ms.median


def saved_bytes(trainer: Trainer) -> int:
    """Bytes of distinct storage that autograd keeps of a step, parameters left out."""
    own = {parameter.untyped_storage().data_ptr() for parameter in trainer.state.model.parameters()}
    kept: dict[int, int] = {}
    alive = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)  # or its place could be another one's
        return tensor

    inputs, targets = next(trainer.batches.of_epoch(seed=0, epoch=1, ranks=trainer.state.ranks))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        with torch.autocast(trainer.state.device.type, dtype=torch.bfloat16, enabled=trainer.state.autocast_bf16):
            logits = trainer.state.model.train()(inputs)
        F.cross_entropy(logits.float(), targets)
    return sum(kept.values())


def measure(variant: str, num_heads: int, *, batch_size: int, repeats: int, device: torch.device) -> Step:
    model = ModelConfig.model_validate({**VARIANTS[variant].model_dump(), "num_heads": num_heads, "attn_drop": 0.0})
    recipe = TrainConfig(epochs=1_000_000, batch_size=batch_size)
    dataset = random_dataset(train=batch_size, num_classes=model.num_classes)
    trainer = Trainer(model, recipe, dataset, device=device)
    dtype = torch.bfloat16 if trainer.state.autocast_bf16 else torch.float32
    size = 8192 if device.type == "cuda" else 2048
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    source = torch.zeros(256 * 2**20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    candidates: dict[str, Callable[[], float]] = {
        "step": lambda: batch_size / trainer.run_epoch().images_per_s,
        "product": lambda: seconds_of(lambda: left @ right, device),
        "copy": lambda: seconds_of(lambda: target.copy_(source), device),
    }
    for work in candidates.values():
        work()
    seconds = interleaved(candidates, repeats)
    operations_per_s = 2 * size**3 / statistics.median(seconds["product"])
    bytes_per_s = 2 * len(source) / statistics.median(seconds["copy"])
    operations = 6 * model_cost(model).macs * batch_size
    saved = saved_bytes(trainer)
    return Step(
        variant=variant,
        num_heads=num_heads,
        precision=trainer.state.plan.precision,
        attention=trainer.state.plan.attention.training,
        gigaoperations=operations / 1e9,
        saved_mib=saved / 2**20,
        gigaoperations_per_s=operations_per_s / 1e9,
        gigabytes_per_s=bytes_per_s / 1e9,
        arithmetic_ms=operations / operations_per_s * 1e3,
        memory_ms=2 * saved / bytes_per_s * 1e3,
        step_ms=Spread.of([step_s * 1e3 for step_s in seconds["step"]]),
    )


def main() -> None:
    restart_with_environment()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", default=["cct_2_3x2_32", "cct_7_3x1_32"], choices=sorted(VARIANTS))
    parser.add_argument("--num-heads", type=int, nargs="+", default=[4, 64])
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="stem of the files for the results")
    options = parser.parse_args()
    device = default_device()
    steps = []
    for variant in options.variants:
        for num_heads in options.num_heads:
            steps.append(
                measure(variant, num_heads, batch_size=options.batch_size, repeats=options.repeats, device=device)
            )
            print(steps[-1], flush=True)
    header = ["network", "heads", "computed in", "attention", "operations, G", "kept for backward, MiB",
              "product, G/s", "copy, GB/s", "arithmetic, ms", "memory, ms", "step, ms", "step / floor",
              "model FLOP utilization"]  # fmt: skip
    rows = [
        [f"`{step.variant}`", str(step.num_heads), step.precision, step.attention, f"{step.gigaoperations:,.0f}",
         f"{step.saved_mib:,.0f}", f"{step.gigaoperations_per_s:,.0f}", f"{step.gigabytes_per_s:,.1f}",
         f"{step.arithmetic_ms:,.0f}", f"{step.memory_ms:,.0f}", step.step_ms.format(",.0f"), f"{step.gap:.1f}",
         f"{step.utilization:.0%}"]
        for step in steps
    ]  # fmt: skip
    report = Report(
        title="A training step beside its floor",
        protocol=f"Batch {options.batch_size}, no dropout on attention weights; medians of {options.repeats} repeats "
        "(lowest to highest). " + " ".join((__doc__ or "").split("\n\n")[-1].split()),
        command=f"python benchmarks/roofline.py --num-heads {' '.join(map(str, options.num_heads))} "
        f"--batch-size {options.batch_size} --repeats {options.repeats}",
        tables=[Table(header, rows)],
        results={"steps": steps},
    )
    report.publish(options.out)


if __name__ == "__main__":
    main()
