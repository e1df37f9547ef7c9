"""Whether `precision: auto` and `attention: auto` choose well beside other work.

    python benchmarks/plan_under_load.py --out benchmarks/plan_under_load

For each network, every way of training it is timed in whole steps on the quiet machine, in turns. Then plans are made
in fresh processes of one thread, while as many other processes as there are cores keep all of them busy, and, for
comparison, without those. A plan is good whose way takes at most a tenth longer than the best one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from lsmha.bench.report import Report, Table
from lsmha.config import ModelConfig, TrainConfig
from lsmha.devices.compute_plan import plan_training, training_candidates
from lsmha.devices.stopwatch import computing_seconds_of
from lsmha.models.attention import AttentionKernels
from lsmha.models.cct import CCT

CPU = torch.device("cpu")
RECIPE = TrainConfig(batch_size=128)
COMMON = {"img_size": 32, "num_classes": 100, "mlp_ratio": 2.0, "kernel_size": 3, "depth": 2}
NETWORKS = {
    "width 128, 4 heads": ModelConfig(embed_dim=128, num_heads=4, num_tokenizer_convs=2, **COMMON),
    "width 128, 128 heads": ModelConfig(embed_dim=128, num_heads=128, num_tokenizer_convs=2, **COMMON),
    "width 64, 2 heads": ModelConfig(embed_dim=64, num_heads=2, num_tokenizer_convs=2, **COMMON),
    "width 256, 8 heads, 256 tokens": ModelConfig(embed_dim=256, num_heads=8, num_tokenizer_convs=1, **COMMON),
}
GOOD = 1.1
PLAN = "import sys; from plan_under_load import print_plan; print_plan(sys.argv[1])"
BUSY = "import torch; torch.set_num_threads(1); a = torch.rand(512, 512)\nwhile True: a @ a"


@dataclass(frozen=True)
class Plans:
    """Of one network."""

    network: str
    steps_s: dict[str, float]
    """Of each way of training it, on the quiet machine."""
    quiet: list[str]
    """What was chosen there."""
    busy: list[str]
    """What was chosen beside other work."""

    def good(self, chosen: list[str]) -> int:
        best = min(self.steps_s.values())
        return sum(self.steps_s[way] <= GOOD * best for way in chosen)


def print_plan(name: str) -> None:
    torch.set_num_threads(1)
    plan = plan_training(NETWORKS[name], RECIPE, device=CPU)
    print(json.dumps([plan.precision, plan.attention.training]))


def steps_of(model: ModelConfig, turns: int) -> dict[str, float]:
    """Seconds of a whole training step by each way, the least of some turns."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = CCT(model).train()
    images = torch.rand(RECIPE.batch_size, model.in_channels, model.img_size, model.img_size)
    labels = torch.arange(RECIPE.batch_size) % model.num_classes
    least: dict[str, float] = {}
    for turn in range(turns + 1):
        for precision, kernel in training_candidates(model, RECIPE, CPU):

            def step() -> None:
                network.use_kernels(AttentionKernels(kernel, kernel))  # noqa: B023  # called at once
                with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):  # noqa: B023
                    logits = network(images)
                torch.nn.functional.cross_entropy(logits.float(), labels).backward()
                network.zero_grad(set_to_none=True)

            seconds = computing_seconds_of(step, CPU)
            if turn:
                way = f"{precision}, {kernel}"
                least[way] = min(seconds, least.get(way, seconds))
    return least


def plans_of(name: str, number: int) -> list[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    found = []
    for _ in range(number):
        command = [sys.executable, "-c", PLAN, name]
        told = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
        found.append(", ".join(json.loads(told)))
    return found


@contextmanager
def all_cores_busy() -> Iterator[None]:
    others = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(os.cpu_count() or 1)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--plans", type=int, default=20, help="beside other work, of each network; half as many without"
    )
    parser.add_argument("--turns", type=int, default=5, help="of whole steps by each way")
    parser.add_argument("--networks", nargs="+", default=[*NETWORKS], choices=[*NETWORKS])
    parser.add_argument("--out", type=Path, help="stem of the files for the results")
    options = parser.parse_args()
    found: list[Plans] = []
    for name in options.networks:
        steps = steps_of(NETWORKS[name], options.turns)
        quiet = plans_of(name, options.plans // 2)
        with all_cores_busy():
            busy = plans_of(name, options.plans)
        found.append(Plans(name, steps, quiet, busy))
        print(found[-1], flush=True)
        report(found, options.turns).publish(options.out)  # a network takes up to half an hour


def report(found: list[Plans], turns: int) -> Report:
    rows = [
        [
            plans.network,
            min(plans.steps_s, key=plans.steps_s.__getitem__),
            f"{statistics.median(plans.steps_s.values()) / min(plans.steps_s.values()):.1f}",
            f"{plans.good(plans.quiet)} of {len(plans.quiet)}",
            f"{plans.good(plans.busy)} of {len(plans.busy)}",
        ]
        for plans in found
    ]
    header = [
        "network",
        "best way",
        "median way, over it",
        "good plans, quiet",
        f"good plans beside {os.cpu_count()} others",
    ]
    return Report(
        title="Plans made beside other work",
        protocol=f"A way of training is good that takes at most {GOOD - 1:.0%} longer than the best, in steps of "
        f"{RECIPE.batch_size} images on the quiet machine, least of {turns} turns, one thread.",
        command="python benchmarks/plan_under_load.py"
        + ("" if len(found) == len(NETWORKS) else f" --networks {' '.join(repr(plans.network) for plans in found)}"),
        tables=[Table(header, rows)],
        results={"plans": found},
    )


if __name__ == "__main__":
    main()
