"""What the analysis costs beside an evaluation of the same network; ratios of times from one run.

    python benchmarks/analysis_cost.py --out benchmarks/analysis_cost.md

The network is CCT-7/3x1 (embed_dim 256, 7 blocks, 256 tokens) with 100 labels and random weights on random images: what
it costs depends on neither. Candidates alternate, and a ratio is the median of the repeats' ratios.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from lsmha.analysis import Tap, build_readouts, fit_readouts, measure_fields, taps_of
from lsmha.analysis.analyze import group_analyses
from lsmha.analysis.streaming import stream_taps
from lsmha.bench.random_data import random_dataset
from lsmha.bench.repeats import interleaved, ratios
from lsmha.config import AnalysisConfig, AugmentConfig, ModelConfig, ReadoutConfig
from lsmha.data import Dataset
from lsmha.devices.hardware import device_name
from lsmha.devices.stopwatch import seconds_of
from lsmha.models import CCT
from lsmha.training import evaluate

LABELS = 100


def images_of(test: int, train: int = 500) -> Dataset:
    return random_dataset(train=train, val=LABELS, test=test, num_classes=LABELS)


def network(num_heads: int, device: torch.device) -> CCT:
    torch.manual_seed(0)
    return CCT(ModelConfig(num_heads=num_heads, num_classes=LABELS)).to(device).eval()


def timed(device: torch.device, candidates: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each way in each turn, after one turn that does not count."""
    for work in candidates.values():
        work()
    return interleaved({name: partial(seconds_of, work, device) for name, work in candidates.items()}, repeats)


def ratio(numerators: list[float], denominators: list[float]) -> str:
    return ratios(numerators, denominators).format(".3f")


def field_costs(images: int, repeats: int, device: torch.device) -> list[str]:
    dataset = images_of(images)
    candidates: dict[str, Callable[[], object]] = {}
    for heads in (4, 16, 64):
        model = network(heads, device)
        readouts = build_readouts(model.config, taps_of(model.config, ["attn"]), "mean", device=device, seed=0)
        candidates[f"evaluate {heads}"] = lambda model=model: evaluate(model, dataset.test, dataset, device=device)
        for name, accuracy in (("fields", False), ("fields+accuracy", True)):
            candidates[f"{name} {heads}"] = lambda model=model, readouts=readouts, accuracy=accuracy: measure_fields(
                model, readouts, dataset, device=device, with_accuracy=accuracy
            )
    times = timed(device, candidates, repeats)
    lines = [
        f"| fields of all heads and nodes of 7 blocks, {heads} heads, over one evaluation "
        f"| {ratio(times[f'fields {heads}'], times[f'evaluate {heads}'])} | <= 1.15 |"
        for heads in (4, 16, 64)
    ]
    lines += [
        f"| the same, and accuracy of each head alone and silenced, {heads} heads "
        f"| {ratio(times[f'fields+accuracy {heads}'], times[f'evaluate {heads}'])} | |"
        for heads in (4, 16, 64)
    ]
    return lines


def extra_of_heads(images: int, repeats: int, device: torch.device) -> list[str]:
    """What fields add to a pass, without the pass: pooling and sums of tokens that are there already."""
    dataset = images_of(images)
    candidates: dict[str, Callable[[], object]] = {}
    for heads in (4, 64):
        config = network(heads, device).config
        readouts = build_readouts(config, taps_of(config, ["attn"]), "mean", device=device, seed=0)
        stub = _Replay(config, device)
        candidates[str(heads)] = lambda stub=stub, readouts=readouts: measure_fields(
            stub, readouts, dataset, device=device, with_accuracy=False
        )
    times = timed(device, candidates, repeats)
    return [f"| extra of the fields with 64 heads over that with 4 | {ratio(times['64'], times['4'])} | <= 1.1 |"]


class _Replay(CCT):
    """A network whose blocks hand on stored tokens: a pass costs next to nothing, so that the taps' cost shows."""

    def __init__(self, config: ModelConfig, device: torch.device) -> None:
        super().__init__(config)
        self.to(device).eval()
        self._tokens = torch.randn(500, config.num_tokens, config.embed_dim, device=device)

    def forward(self, images: torch.Tensor, head_mask: torch.Tensor | None = None) -> torch.Tensor:
        tokens = self._tokens[: len(images)]
        for block in self.blocks:
            for hook in list(block.attn.proj._forward_pre_hooks.values()):
                hook(block.attn.proj, (tokens,))
        return tokens[:, 0, : self.config.num_classes]


def training_costs(images: int, repeats: int, device: torch.device) -> list[str]:
    dataset = images_of(LABELS, images)
    model = network(16, device)
    taps = taps_of(model.config, ["attn"])
    recipe = ReadoutConfig(solver="sgd", pooling="sequence", epochs=1, augment=AugmentConfig(flip=True, translate=4))

    def fit(chosen: list[Tap]) -> None:
        fit_readouts(model, chosen, dataset, recipe, device=device)

    times = timed(device, {"all": lambda: fit(taps), "one": lambda: fit(taps[-1:])}, repeats)
    together = ratio(times["all"], times["one"])
    return [f"| training 7 read-outs together (sgd) over training the last one | {together} | <= 1.5 |"]


def silencing_costs(images: int, repeats: int, device: torch.device) -> list[str]:
    """One pass for all, against a pass of the test set for each head, silenced in the network's own mask."""
    dataset = images_of(images)
    model = network(16, device)
    taps = taps_of(model.config, ["attn"])
    readouts = build_readouts(model.config, taps, "mean", device=device, seed=0)
    heads = model.config.num_heads

    def one_by_one() -> None:
        for tap in taps:
            for head in range(heads):
                mask = torch.ones(model.config.depth, heads, device=device)
                mask[tap.block] = 0
                mask[tap.block, head] = 1
                forward = model.forward
                model.forward = lambda inputs, mask=mask, forward=forward: forward(inputs, mask)  # type: ignore[method-assign]
                try:
                    for _ in stream_taps(model, {tap: readouts[tap]}, dataset.test, dataset, device=device):
                        pass
                finally:
                    model.forward = forward  # type: ignore[method-assign]

    at_once = lambda: measure_fields(model, readouts, dataset, device=device, with_accuracy=False)  # noqa: E731
    at_once()
    times = [seconds_of(one_by_one, device) / seconds_of(at_once, device) for _ in range(repeats)]
    return [
        f"| each of {len(taps) * heads} heads by its own silenced pass over all at once ({images} images) "
        f"| {statistics.median(times):.0f} | >= 20 |"
    ]


def whole_analysis(images: int, device: torch.device) -> list[str]:
    """Fields, accuracies, clusters and symmetry of a 16-head network, beside its evaluation; and the memory of both."""
    dataset = images_of(images)
    model = network(16, device)
    readouts = build_readouts(model.config, taps_of(model.config, ["attn"]), "mean", device=device, seed=0)

    def analyze() -> None:
        fields, _, _ = measure_fields(model, readouts, dataset, device=device)
        for tap in readouts:
            group_analyses(tap, fields[tap], AnalysisConfig(), conv=False)

    analysis = seconds_of(analyze, device)
    gigabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2  # before the evaluation's larger batches
    evaluation = seconds_of(lambda: evaluate(model, dataset.test, dataset, device=device), device)
    return [
        f"| analysis of {images:,} images (16 heads; fields, accuracies, clusters, symmetry) over their evaluation "
        f"({evaluation:.0f} s) | {analysis / evaluation:.3f} | <= 1.2 |",
        f"| resident memory of that process at its highest, GiB | {gigabytes:.2f} | < 2 |",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=500, help="test images of the repeated comparisons")
    parser.add_argument("--analysis-images", type=int, default=10_000, help="test images of the one whole analysis")
    parser.add_argument("--silenced-images", type=int, default=LABELS, help="test images of the passes head by head")
    parser.add_argument("--repeats", type=int, default=5, help="measurements of each candidate")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="file for the table")
    parser.add_argument("--only-analysis", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    device = torch.device(options.device)
    if options.only_analysis:
        print("\n".join(whole_analysis(options.analysis_images, device)))
        return
    lines = [
        "# Cost of the analysis",
        "",
        f"CCT-7/3x1, 100 labels, random weights; {options.images:,} test images unless said "
        f"otherwise; float32; ratios are medians of {options.repeats} repeats (lowest to highest).",
        "",
        f"{device_name(device)}, {os.cpu_count()} cores, {torch.get_num_threads()} threads; "
        f"Python {platform.python_version()}, torch {torch.__version__}.",
        "",
        "| what | ratio | bound |",
        "| --- | --- | --- |",
    ]
    for measure in (field_costs, extra_of_heads, training_costs):
        lines += measure(options.images, options.repeats, device)
        print("\n".join(lines), flush=True)
    lines += silencing_costs(options.silenced_images, 1, device)
    # In a process of its own, whose memory is that of this analysis alone.
    command = [sys.executable, __file__, "--only-analysis", "--device", options.device]
    command += ["--analysis-images", str(options.analysis_images)]
    lines += subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    text = "\n".join(lines) + "\n"
    print(text)
    if options.out:
        options.out.write_text(text)


if __name__ == "__main__":
    main()
