"""Training throughput of this package beside the same network by vit-pytorch, in a plain loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from lsmha.bench.loops import LoopName
from lsmha.bench.repeats import Spread, interleaved, ratios
from lsmha.bench.report import Table
from lsmha.bench.subject import Subject, SubjectProcess, started
from lsmha.config import ModelConfig, TrainConfig
from lsmha.models import VARIANTS

RUN_S = 3.0
"""How long one measurement takes; longer where a single step does."""

PLAIN, PLAIN_BF16, PLAIN_UNDROPPED = "vit-pytorch", "vit-pytorch, bf16 autocast", "vit-pytorch, no attention dropout"
OURS, OURS_UNDROPPED = "lsmha, attention dropout", "lsmha"

COMPARISONS = (
    ("each with its own recipe's dropout", OURS_UNDROPPED, PLAIN),
    ("both with attention dropout", OURS, PLAIN),
    ("both without", OURS_UNDROPPED, PLAIN_UNDROPPED),
    ("both with it, vit-pytorch under bf16 autocast", OURS, PLAIN_BF16),
)
"""What is compared, the candidate whose speed is the numerator, and the other one."""
TIMM, TIMM_RESIDENT = "timm's loop and loader, bf16", "timm's loop, images in memory, bf16"
COMPARISONS_WITH_TIMM = (
    ("each with its own recipe's dropout, over timm's loop and loader in bf16", OURS_UNDROPPED, TIMM),
    ("the same, timm's images on the device already", OURS_UNDROPPED, TIMM_RESIDENT),
)


@dataclass(frozen=True)
class Speed:
    """How fast one candidate trains one network."""

    variant: str
    candidate: str
    attn_drop: float
    """Dropout on the attention weights."""
    num_params: int
    images_per_s: Spread
    peak_memory_mib: float
    """Largest resident memory of its process, interpreter and libraries included."""


@dataclass(frozen=True)
class Speedup:
    """Images per second of one candidate over those of another, repeat by repeat."""

    variant: str
    what: str
    ratio: Spread


def compare_training(
    variants: Sequence[str],
    *,
    batch_size: int,
    repeats: int,
    device: str,
    run_s: float = RUN_S,
    with_timm: bool = False,
    on_repeat: Callable[[str], None] = lambda _: None,
) -> tuple[list[Speed], list[Speedup]]:
    """Time training steps of vit-pytorch in a plain loop and of this package, with and without dropout on attention
    weights: the published recipe has it, this project's own recipes do not.

    Each candidate trains in a process of its own, only one at a time. `on_repeat` gets a line before each measurement.

    Args:
        variants: Names in `VARIANTS`.
        batch_size: Images per step.
        repeats: Measurements of each candidate.
        device: cpu or cuda.
        run_s: Seconds of a measurement.
        with_timm: Compare with timm's training loop around vit-pytorch's network, too.

    Raises:
        SubjectError: A process could not train; vit-pytorch is not installed, maybe.
    """
    speeds, speedups = [], []
    for variant in variants:
        subjects = _subjects(VARIANTS[variant], batch_size, device, with_timm=with_timm)

        def tell(repeat: int, candidate: str, variant: str = variant) -> None:
            on_repeat(f"{variant}: repeat {repeat + 1} of {repeats}, {candidate}")

        with ExitStack() as stack:
            processes: dict[str, SubjectProcess] = {}
            for candidate, subject in subjects.items():
                on_repeat(f"{variant}: {candidate} warms up")
                processes[candidate] = stack.enter_context(started(subject, run_s=run_s))
            measured = interleaved(
                {candidate: process.images_per_s for candidate, process in processes.items()},
                repeats,
                on_repeat=tell,
            )
            speeds += [
                Speed(
                    variant=variant,
                    candidate=candidate,
                    attn_drop=subjects[candidate].model.attn_drop,
                    num_params=process.num_params,
                    images_per_s=Spread.of(measured[candidate]),
                    peak_memory_mib=process.peak_memory_mib(),
                )
                for candidate, process in processes.items()
            ]
        compared = COMPARISONS + (COMPARISONS_WITH_TIMM if with_timm else ())
        speedups += [Speedup(variant, what, ratios(measured[own], measured[other])) for what, own, other in compared]
    return speeds, speedups


def _subjects(published: ModelConfig, batch_size: int, device: str, *, with_timm: bool) -> dict[str, Subject]:
    recipe = TrainConfig(batch_size=batch_size, learning_rate=1e-4)
    undropped = published.model_copy(update={"attn_drop": 0.0})

    def plain(model: ModelConfig, precision: str = "fp32", loop: LoopName = "vit-pytorch") -> Subject:
        return Subject(loop, model, recipe.model_copy(update={"precision": precision}), device, tuned=False)

    def ours(model: ModelConfig) -> Subject:
        return Subject("lsmha", model, recipe, device, tuned=True)

    timm = {TIMM: plain(published, "bf16", "timm"), TIMM_RESIDENT: plain(published, "bf16", "timm, resident")}
    return {
        **(timm if with_timm else {}),
        PLAIN: plain(published),
        PLAIN_BF16: plain(published, "bf16"),
        PLAIN_UNDROPPED: plain(undropped),
        OURS: ours(published),
        OURS_UNDROPPED: ours(undropped),
    }


def tables(speeds: Sequence[Speed], speedups: Sequence[Speedup]) -> list[Table]:
    """The results for readers: ratios first."""
    return [
        Table(
            ["network", "speed of lsmha over vit-pytorch's", "ratio", "repeats"],
            [
                [f"`{speedup.variant}`", speedup.what, speedup.ratio.format(".2f"), str(speedup.ratio.n)]
                for speedup in speedups
            ],
        ),
        Table(
            ["network", "candidate", "attn_drop", "parameters", "images/s", "peak memory, MiB"],
            [
                [
                    f"`{speed.variant}`",
                    speed.candidate,
                    f"{speed.attn_drop:g}",
                    f"{speed.num_params:,}",
                    speed.images_per_s.format(",.1f"),
                    f"{speed.peak_memory_mib:,.0f}",
                ]
                for speed in speeds
            ],
        ),
    ]
