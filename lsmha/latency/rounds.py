"""Latency of several networks compared: in rounds, each network in a fresh process of every round.

A process keeps its luck for all its passes: where its memory lies, which clock the CPU found. And a machine is not
as fast at one time as at another. So each round takes every network in turn, and a network that is always the same, the
reference network, tells whether the round is like the others.
"""

from __future__ import annotations

import ctypes
import json
import math
import multiprocessing
import os
import signal
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection

import numpy as np
import torch

from lsmha.config import LatencyConfig, ModelConfig
from lsmha.errors import LatencyError
from lsmha.latency.timing import LatencyMeasurement, measure_latency

REFERENCE_NETWORK = ModelConfig(
    img_size=32, num_classes=10, embed_dim=128, depth=2, num_heads=2, attention="materialized"
)
MAX_DRIFT = 0.1
"""How far, as a fraction, the reference network may be from its median in a round that counts."""


Measured = list[LatencyMeasurement] | str
"""Of one network: a measurement per batch size, or, in one line, why there is none."""


@dataclass(frozen=True)
class Round:
    """What one round measured."""

    reference_ms: float
    """Latency of the reference network, in ms per image, at the first batch size."""
    measured: list[Measured]
    """Of each network that was asked for."""


def measure_in_rounds(
    measure: Callable[[Sequence[ModelConfig]], Round],
    models: Sequence[ModelConfig],
    rounds: int,
    *,
    fewest: int | None = None,
) -> list[Measured]:
    """Make rounds until so many count, or twice as many were made, and combine those that count.

    A round counts in which the reference network took as long as in the others. A network that could not be measured in
    one round has no measurement.

    Args:
        measure: Makes a round of some networks.
        models: The networks.
        rounds: That are to count.
        fewest: A network that differs from every other by more than rounds that count do is in so many only. None is to
            measure all of them in all rounds.

    Returns:
        For each network a measurement per batch size, over all processes that measured it, or why there is none.
    """
    made: list[tuple[list[int], Round]] = []
    asked = list(range(len(models)))
    while asked and len(_alike(made)) < rounds and len(made) < 2 * rounds:
        made.append((asked, measure([models[index] for index in asked])))
        if fewest is not None and len(_alike(made)) >= fewest:
            asked = _in_question(_by_network(_alike(made), len(models)), fewest)
    alike = _alike(made)
    reference_ms = statistics.median(round_.reference_ms for _, round_ in alike)
    every, counted = (_by_network(rounds_, len(models)) for rounds_ in (made, alike))
    # A network that is in none of the rounds that count has to do with the others.
    return [_combined(found or others, reference_ms) for found, others in zip(counted, every, strict=True)]


def _alike(made: Sequence[tuple[list[int], Round]]) -> list[tuple[list[int], Round]]:
    """Those of the rounds that count."""
    if not made:
        return []
    usual = statistics.median_low(round_.reference_ms for _, round_ in made)
    return [(asked, round_) for asked, round_ in made if abs(round_.reference_ms - usual) <= MAX_DRIFT * usual]


def _by_network(made: Sequence[tuple[list[int], Round]], number: int) -> list[list[Measured]]:
    found: list[list[Measured]] = [[] for _ in range(number)]
    for asked, round_ in made:
        for index, measured in zip(asked, round_.measured, strict=True):
            found[index].append(measured)
    return found


def _in_question(found: Sequence[Sequence[Measured]], fewest: int) -> list[int]:
    """Networks that were in fewer rounds, or that another one may be as fast as."""
    spans: dict[int, tuple[float, float]] = {}
    for index, by_round in enumerate(found):
        medians = [rows[0].latency_ms for rows in by_round if not isinstance(rows, str)]
        if len(medians) == len(by_round):  # a network that once could not be measured is settled
            spans[index] = (
                min(medians, default=0.0) * (1 - MAX_DRIFT / 2),
                max(medians, default=math.inf) * (1 + MAX_DRIFT / 2),
            )
    return [
        index
        for index, (low, high) in spans.items()
        if len(found[index]) < fewest
        or any(other != index and low <= highest and lowest <= high for other, (lowest, highest) in spans.items())
    ]


def _combined(found: Sequence[Measured], reference_ms: float) -> Measured:
    """Of one network, what each round measured, as one."""
    rows: list[list[LatencyMeasurement]] = []
    for by_round in found:
        if isinstance(by_round, str):
            return by_round
        rows.append(by_round)
    return [replace(_over_processes(of_batch), reference_ms=reference_ms) for of_batch in zip(*rows, strict=True)]


def _over_processes(found: Sequence[LatencyMeasurement]) -> LatencyMeasurement:
    # Two kernels can be as fast as each other, and a process choose the other one: it timed another thing.
    (kernel, _), *_ = Counter(row.attention for row in found).most_common()
    same = [row for row in found if row.attention == kernel]
    if len(same) == 1:
        return same[0]
    p25, median, p75 = np.percentile([row.latency_ms for row in same], (25, 50, 75)).tolist()
    return replace(
        same[0],
        latency_ms=median,
        latency_p25_ms=p25,
        latency_p75_ms=p75,
        latency_p90_ms=statistics.median(row.latency_p90_ms for row in same),
        iterations=sum(row.iterations for row in same),
        processes=len(same),
        converged=all(row.converged for row in same),
        undisturbed=all(row.undisturbed for row in same),
    )


def measure_round(models: Sequence[ModelConfig], latency: LatencyConfig, *, device: torch.device) -> Round:
    """Time the reference network and then each network in a fresh process, one after another.

    The processes are forks of a fresh interpreter, which has imported torch and done nothing with it.

    Raises:
        LatencyError: Even the reference network could not be timed.
    """
    task = {
        "models": [model.model_dump_json() for model in models],
        "latency": latency.model_dump_json(),
        "device": str(device),
    }
    # What goes by the name of this package in the working folder is not to be run.
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    ended = subprocess.run(
        [sys.executable, "-m", __name__], input=json.dumps(task), env=environment, capture_output=True, text=True
    )
    if ended.returncode:
        last_words = (ended.stderr.strip().splitlines() or [f"it ended with {ended.returncode}"])[-1]
        raise LatencyError(f"the process that was to measure latency ended: {last_words}")
    answer = json.loads(ended.stdout.splitlines()[-1])
    measured = [
        found if isinstance(found, str) else [LatencyMeasurement(**row) for row in found]
        for found in answer["measured"]
    ]
    return Round(reference_ms=answer["reference_ms"], measured=measured)


def _make_round(task: dict[str, object]) -> dict[str, object]:
    latency, device = LatencyConfig.model_validate_json(str(task["latency"])), str(task["device"])
    assert isinstance(task["models"], list)
    first = latency.model_copy(update={"batch_sizes": latency.batch_sizes[:1], "mode": "eager"})
    reference = _in_fork(REFERENCE_NETWORK, first, device)
    if isinstance(reference, str):
        raise LatencyError(reference)
    measured = [_in_fork(ModelConfig.model_validate_json(model), latency, device) for model in task["models"]]
    return {"reference_ms": reference[0]["latency_ms"], "measured": measured}


def _in_fork(model: ModelConfig, latency: LatencyConfig, device: str) -> list[dict[str, object]] | str:
    """The rows of one network, measured in a child of this process, or why there are none."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_measure_and_send, args=(model, latency, device, sender))
    child.start()
    sender.close()
    try:
        found: list[dict[str, object]] | str = receiver.recv()
    except EOFError:
        child.join()
        found = f"the process that measured it ended with {child.exitcode}"
    child.join()
    return found


def _measure_and_send(model: ModelConfig, latency: LatencyConfig, device: str, sender: Connection) -> None:
    _end_with_parent()
    try:
        rows = measure_latency(model, latency, device=torch.device(device))
    except Exception as error:
        (reason, *_) = str(error).splitlines() or [""]
        sender.send(f"{type(error).__name__}: {reason}")
    else:
        sender.send([asdict(row) for row in rows])


def _end_with_parent() -> None:
    """Have this process killed when the one that started it ends (on Linux; elsewhere it measures to its end)."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


if __name__ == "__main__":
    _end_with_parent()
    print(json.dumps(_make_round(json.load(sys.stdin))), flush=True)
