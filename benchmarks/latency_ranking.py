"""Whether a ranking by latency repeats: 20 architectures, measured in rounds, at two times.

    python benchmarks/latency_ranking.py --out benchmarks/latency_first
    python benchmarks/latency_ranking.py --against benchmarks/latency_first.json --out benchmarks/latency_ranking

The second command, hours or days later, compares: Kendall's tau-b over all pairs, and over those whose interquartile
ranges do not overlap at either time, the pairs that a sweep does not take for ties.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations, count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import kendalltau

from lsmha.bench.report import Report, Table
from lsmha.config import LatencyConfig, ModelConfig
from lsmha.devices.environment import restart_with_environment
from lsmha.devices.hardware import default_device
from lsmha.latency import Round, measure_in_rounds, measure_round

SHAPES = [
    (embed_dim, depth, num_heads, num_conv_blocks)
    for embed_dim, heads in ((64, (1, 16)), (128, (4, 64)))
    for depth, conv_blocks in ((2, (0,)), (4, (0, 2)), (6, (0, 4)))
    for num_heads in heads
    for num_conv_blocks in conv_blocks
]
"""embed_dim, depth, num_heads, num_conv_blocks of 20 architectures, as a sweep would search them."""


@dataclass(frozen=True)
class Latency:
    """Of one architecture at one time."""

    architecture: str
    latency_ms: float
    latency_p25_ms: float
    latency_p75_ms: float
    processes: int
    undisturbed: bool


def architectures(number: int) -> dict[str, ModelConfig]:
    return {
        f"dim {embed_dim}, depth {depth}, {num_heads} heads, {num_conv_blocks} conv": ModelConfig(
            img_size=32, num_classes=100, embed_dim=embed_dim, depth=depth, num_heads=num_heads,
            num_conv_blocks=num_conv_blocks,
        )
        for embed_dim, depth, num_heads, num_conv_blocks in SHAPES[:number]
    }  # fmt: skip


def measure(
    latency: LatencyConfig, models: dict[str, ModelConfig], device: torch.device, fewest: int | None
) -> list[Latency]:
    made = count(1)

    def make_round(asked: Sequence[ModelConfig]) -> Round:
        round_ = measure_round(asked, latency, device=device)
        print(f"round {next(made)} of {len(asked)}: reference {round_.reference_ms:.3f} ms", flush=True)
        return round_

    measured = []
    found = measure_in_rounds(make_round, list(models.values()), latency.rounds, fewest=fewest)
    for name, rows in zip(models, found, strict=True):
        assert not isinstance(rows, str), rows
        values = asdict(rows[0])
        fields = ("latency_ms", "latency_p25_ms", "latency_p75_ms", "processes", "undisturbed")
        measured.append(Latency(name, **{field: values[field] for field in fields}))
    return measured


@dataclass(frozen=True)
class Agreement:
    """Of two rankings."""

    tau: float
    """Kendall's tau-b over all pairs."""
    pairs: int
    told_apart: int
    """Pairs whose interquartile ranges do not overlap, at either time."""
    discordant: int
    """Of those, pairs in the other order at the other time."""
    ratio_median: float
    """Latency now over latency then, median over the architectures."""
    ratio_low: float
    ratio_high: float


def compare(now: list[Latency], then: list[Latency]) -> Agreement:
    before = {latency.architecture: latency for latency in then}
    pairs = [(latency, before[latency.architecture]) for latency in now if latency.architecture in before]
    told_apart = discordant = 0
    for (a, a_then), (b, b_then) in combinations(pairs, 2):
        if not (_tie(a, b) or _tie(a_then, b_then)):
            told_apart += 1
            discordant += (a.latency_ms < b.latency_ms) != (a_then.latency_ms < b_then.latency_ms)
    ratios = [latency.latency_ms / then_.latency_ms for latency, then_ in pairs]
    tau = kendalltau(
        [latency.latency_ms for latency, _ in pairs], [latency.latency_ms for _, latency in pairs]
    ).statistic
    return Agreement(
        tau=float(tau),
        pairs=len(pairs) * (len(pairs) - 1) // 2,
        told_apart=told_apart,
        discordant=discordant,
        ratio_median=float(np.median(ratios)),
        ratio_low=min(ratios),
        ratio_high=max(ratios),
    )


def _tie(one: Latency, other: Latency) -> bool:
    return one.latency_p25_ms <= other.latency_p75_ms and other.latency_p25_ms <= one.latency_p75_ms


def main() -> None:
    restart_with_environment()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--fewest-rounds", type=int, help="of a network that differs from all others, as in a sweep; default: all"
    )
    parser.add_argument("--architectures", type=int, default=len(SHAPES), help="so many of the 20")
    parser.add_argument("--max-seconds", type=float, default=2.0, help="time budget of a process")
    parser.add_argument("--against", type=Path, help="JSON of an earlier time, to compare with")
    parser.add_argument("--out", type=Path, help="stem of the files for the results")
    options = parser.parse_args()
    other = json.loads(options.against.read_text()) if options.against else None
    latency = LatencyConfig(rounds=options.rounds, max_seconds=options.max_seconds)
    measured_at = time.strftime("%Y-%m-%d %H:%M", time.gmtime())
    now = measure(latency, architectures(options.architectures), default_device(), options.fewest_rounds)
    results: dict[str, list[Any]] = {"latencies": now}
    tables = []
    then: dict[str, Latency] = {}
    fewest = f" ({options.fewest_rounds} of a network that differs from all others)" if options.fewest_rounds else ""
    protocol = f"Batch 1, one thread, {options.rounds} rounds{fewest}, measured at {measured_at} UTC"
    if other is not None:
        then = {row["architecture"]: Latency(**row) for row in other["results"]["latencies"]}
        found = compare(now, list(then.values()))
        results["agreement"] = [found]
        protocol += f"; the other time: {other['protocol'].rpartition('measured at ')[2]}"
        tables.append(_agreement_table(found))
    rows = [
        [latency.architecture, _cell(latency),
         _cell(then[latency.architecture]) if latency.architecture in then else "",
         str(latency.processes), "yes" if latency.undisturbed else "no"]
        for latency in sorted(now, key=lambda latency: latency.latency_ms)
    ]  # fmt: skip
    header = ["architecture", "ms (quartiles)", "at the other time", "processes", "undisturbed"]
    report = Report(
        title="A ranking by latency",
        protocol=protocol,
        command="python benchmarks/latency_ranking.py --rounds " + str(options.rounds)
        + (f" --fewest-rounds {options.fewest_rounds}" if options.fewest_rounds else "")
        + f" --max-seconds {options.max_seconds:g}"
        + (f" --against benchmarks/{options.against.name}" if options.against else ""),
        tables=[*tables, Table(header, rows)],
        results=results,
    )  # fmt: skip
    report.publish(options.out)


def _agreement_table(found: Agreement) -> Table:
    header = ["Kendall's tau", "pairs", "not ties", "of these in another order", "now over then (lowest to highest)"]
    ratio = f"{found.ratio_median:.2f} ({found.ratio_low:.2f} to {found.ratio_high:.2f})"
    return Table(header, [[f"{found.tau:.3f}", *map(str, (found.pairs, found.told_apart, found.discordant)), ratio]])


def _cell(one: Latency) -> str:
    return f"{one.latency_ms:.3f} ({one.latency_p25_ms:.3f} to {one.latency_p75_ms:.3f})"


if __name__ == "__main__":
    main()
