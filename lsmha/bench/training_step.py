"""Training throughput of this package beside the same network by vit-pytorch, in a plain loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from lsmha.bench.contestant import Contestant, ContestantProcess, started
from lsmha.bench.loops import LoopName
from lsmha.bench.report import Table
from lsmha.bench.turns import Spread, in_turns, ratios
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
"""What is compared, the way whose speed is the numerator, and the other one."""
TIMM, TIMM_RESIDENT = "timm's loop and loader, bf16", "timm's loop, images in memory, bf16"
COMPARISONS_WITH_TIMM = (
    ("each with its own recipe's dropout, over timm's loop and loader in bf16", OURS_UNDROPPED, TIMM),
    ("the same, timm's images on the device already", OURS_UNDROPPED, TIMM_RESIDENT),
)


@dataclass(frozen=True)
class Speed:
    """Throughput of one way to train one network."""

    variant: str
    way: str
    attn_drop: float
    """Dropout on the attention weights."""
    num_params: int
    images_per_s: Spread
    peak_memory_mib: float
    """Largest resident memory of its process, interpreter and libraries included."""


@dataclass(frozen=True)
class Speedup:
    """Images per second of one way over those of another, turn by turn."""

    variant: str
    what: str
    ratio: Spread


def compare_training(
    variants: Sequence[str],
    *,
    batch_size: int,
    turns: int,
    device: str,
    run_s: float = RUN_S,
    with_timm: bool = False,
    on_turn: Callable[[str], None] = lambda _: None,
) -> tuple[list[Speed], list[Speedup]]:
    """Time training steps of vit-pytorch in a plain loop and of this package, with and without dropout on attention
    weights: the published recipe has it, this project's own recipes do not.

    Each way trains in a process of its own, and only one at a time. `on_turn` gets a line before each measurement.

    Args:
        variants: Names in `VARIANTS`.
        batch_size: Images per step.
        turns: Measurements of each way.
        device: cpu or cuda.
        run_s: Seconds of a measurement.
        with_timm: Compare with timm's training loop around vit-pytorch's network, too.

    Raises:
        ContestantError: A process could not train; vit-pytorch is not installed, maybe.
    """
    speeds, speedups = [], []
    for variant in variants:
        contestants = _contestants(VARIANTS[variant], batch_size, device, with_timm=with_timm)

        def tell(turn: int, way: str, variant: str = variant) -> None:
            on_turn(f"{variant}: turn {turn + 1} of {turns}, {way}")

        with ExitStack() as stack:
            processes: dict[str, ContestantProcess] = {}
            for way, contestant in contestants.items():
                on_turn(f"{variant}: {way} warms up")
                processes[way] = stack.enter_context(started(contestant, run_s=run_s))
            measured = in_turns(
                {way: process.images_per_s for way, process in processes.items()},
                turns,
                on_turn=tell,
            )
            speeds += [
                Speed(
                    variant=variant,
                    way=way,
                    attn_drop=contestants[way].model.attn_drop,
                    num_params=process.num_params,
                    images_per_s=Spread.of(measured[way]),
                    peak_memory_mib=process.peak_memory_mib(),
                )
                for way, process in processes.items()
            ]
        compared = COMPARISONS + (COMPARISONS_WITH_TIMM if with_timm else ())
        speedups += [Speedup(variant, what, ratios(measured[own], measured[other])) for what, own, other in compared]
    return speeds, speedups


def _contestants(published: ModelConfig, batch_size: int, device: str, *, with_timm: bool) -> dict[str, Contestant]:
    recipe = TrainConfig(batch_size=batch_size, learning_rate=1e-4)
    undropped = published.model_copy(update={"attn_drop": 0.0})

    def plain(model: ModelConfig, precision: str = "fp32", loop: LoopName = "vit-pytorch") -> Contestant:
        return Contestant(loop, model, recipe.model_copy(update={"precision": precision}), device, tuned=False)

    def ours(model: ModelConfig) -> Contestant:
        return Contestant("lsmha", model, recipe, device, tuned=True)

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
            ["network", "speed of lsmha over vit-pytorch's", "ratio", "turns"],
            [[f"`{one.variant}`", one.what, one.ratio.format(".2f"), str(one.ratio.n)] for one in speedups],
        ),
        Table(
            ["network", "way", "attn_drop", "parameters", "images/s", "peak memory, MiB"],
            [
                [
                    f"`{one.variant}`",
                    one.way,
                    f"{one.attn_drop:g}",
                    f"{one.num_params:,}",
                    one.images_per_s.format(",.1f"),
                    f"{one.peak_memory_mib:,.0f}",
                ]
                for one in speeds
            ],
        ),
    ]
