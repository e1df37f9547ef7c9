"""Latency of several networks compared: in rounds, each network in a fresh process of every round.

A process keeps its luck for all its passes: where its memory lies, which clock the CPU found. And a machine is not
as fast at one time as at another. So each round takes every network in turn, and a network that is always the same, the
reference network, tells whether the round is like the others.
"""

from __future__ import annotations

import ctypes
import json
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


@dataclass(frozen=True)
class Round:
    """What one round measured."""

    reference_ms: float
    """Latency of the reference network, in ms per image, at the first batch size."""
    measured: list[list[LatencyMeasurement] | str]
    """For each network a measurement per batch size, or, in one line, why there is none."""


def measure_in_rounds(measure: Callable[[], Round], rounds: int) -> list[list[LatencyMeasurement] | str]:
    """Make rounds until so many count, or twice as many were made, and combine those that count.

    A round counts in which the reference network took as long as in the others. A network that could not be measured in
    one round has no measurement.

    Returns:
        For each network a measurement per batch size, over all processes that measured it, or why there is none.
    """
    made: list[Round] = []
    while len(_alike(made)) < rounds and len(made) < 2 * rounds:
        made.append(measure())
    alike = _alike(made)
    reference_ms = statistics.median(round_.reference_ms for round_ in alike)
    return [_combined(found, reference_ms) for found in zip(*(round_.measured for round_ in alike), strict=True)]


def _alike(rounds: Sequence[Round]) -> list[Round]:
    if not rounds:
        return []
    usual = statistics.median_low(round_.reference_ms for round_ in rounds)
    return [round_ for round_ in rounds if abs(round_.reference_ms - usual) <= MAX_DRIFT * usual]


def _combined(found: Sequence[list[LatencyMeasurement] | str], reference_ms: float) -> list[LatencyMeasurement] | str:
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
