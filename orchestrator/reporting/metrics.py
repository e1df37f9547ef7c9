"""What a sweep is doing, as metrics of its Ray cluster, which offers them to Prometheus.

Ray forgets a gauge two report intervals (20 s) after it was last set, so a thread sets all of them again and again. The
sweep itself only notes what happened; that takes microseconds, and whatever goes wrong with Ray happens in the thread.
"""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple, get_args

import numpy as np
from ray.util.metrics import Gauge

from lsmha.pareto import hypervolume, pareto_mask
from orchestrator.failures import describe_error
from orchestrator.run_folder.front import objective_values
from orchestrator.run_folder.ledger import Ledger
from orchestrator.run_folder.records import TrialRecord, TrialStatus

PERIOD_S = 1.0
"""How often gauges are set: 4 µs each. Every 10 s Ray takes their latest values along."""

GAUGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "lsmha_trials": (
        "Training runs by stage (trials, finalists) and state (running, completed, stopped, paused, failed); those "
        "that ended in earlier sessions of the sweep count.",
        ("sweep", "stage", "state"),
    ),
    "lsmha_best_objective": (
        "Best value of the first objective among the completed trials.",
        ("sweep", "metric"),
    ),
    "lsmha_hypervolume": (
        "Hypervolume of the front so far against lsmha_hypervolume_reference, in the product of the objectives' units. "
        "As the reference stays, it grows when the front does, and never else. The number in summary.json is against "
        "the worst of all completed trials, so another one.",
        ("sweep",),
    ),
    "lsmha_hypervolume_reference": (
        "Reference point of lsmha_hypervolume, by objective: twice as bad as the worst completed trial of the first "
        "batch of suggestions (half of what is maximized, double of what is minimized). Known when that batch has "
        "ended; a resumed sweep has the same.",
        ("sweep", "metric"),
    ),
    "lsmha_images_per_s": (
        "Training images per second of all running trials and finalists together, each as in its last epoch.",
        ("sweep",),
    ),
    "lsmha_trial_images_per_s": (
        "Training images per second of a running trial or finalist in its last epoch, over all its ranks.",
        ("sweep", "trial"),
    ),
    "lsmha_trial_gpu_memory_gib": (
        "Peak of the GPU memory in tensors (GiB) since a running trial or finalist began, on the GPU of its first "
        "rank; a copy of the data set there counts. 0 on CPUs.",
        ("sweep", "trial"),
    ),
}
"""What each gauge tells, and its tags; Prometheus shows the names with `ray_` in front."""


class Series(NamedTuple):
    """One line of a gauge: values of its tags, in their order."""

    gauge: str
    tags: tuple[str, ...]


class _Pace(NamedTuple):
    """How a run trains, by its last epoch; None before it has ended one."""

    stage: str
    images_per_s: float | None = None
    gpu_memory_gib: float | None = None


class SweepMetrics:
    """The metrics of a sweep: told what happens, shown while the block lasts, and once more as it ends.

    Args:
        ledger: The run, in which a session has begun.
        say: Gets one line, once, if Ray does not take metrics. The sweep goes on.
    """

    def __init__(self, ledger: Ledger, say: Callable[[str], None]) -> None:
        self._sweep, self._say = ledger.config.name, say
        self._lock = threading.Lock()
        self._running: dict[str, _Pace] = {}
        self._ended: Counter[tuple[str, str]] = Counter()
        self._paused: set[str] = set()
        self._new: list[TrialRecord] = []
        """Completed trials that the front so far has not seen."""
        self._front = FrontSoFar(ledger)
        self._gauges: dict[str, Gauge] = {}
        self._shown: set[Series] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._show_until_stopped, name="metrics", daemon=True)
        for record in [*ledger.trials, *ledger.pauses.values(), *ledger.finalists]:
            self.ended(record)

    def __enter__(self) -> SweepMetrics:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._running.clear()
        self._stop.set()
        self._thread.join(timeout=2)  # in which it shows what has come out; Ray sends that as it shuts down

    def started(self, run_id: str, *, finalist: bool) -> None:
        """A training run begins, maybe not for the first time."""
        with self._lock:
            self._running[run_id] = _Pace(_stage(finalist))
            self._paused.discard(run_id)

    def epoch_ended(self, run_id: str, images_per_s: Any, gpu_memory_gib: Any) -> None:
        """A running one did an epoch; what is no finite number is not shown."""
        with self._lock:
            self._running[run_id] = _Pace(self._running[run_id].stage, _finite(images_per_s), _finite(gpu_memory_gib))

    def ended(self, record: TrialRecord) -> None:
        """A training run ended, well or not, or pauses."""
        finalist = record.id != record.trial
        with self._lock:
            self._running.pop(record.id, None)
            if record.paused:
                self._paused.add(record.id)
                return
            self._paused.discard(record.id)
            self._ended[_stage(finalist), record.status] += 1
            if record.completed and not finalist:
                self._new.append(record)

    def values(self) -> dict[Series, float]:
        """What there is to show now; called by one thread."""
        with self._lock:
            running, ended = dict(self._running), self._ended.copy()
            ended[_stage(False), "paused"] = len(self._paused)
            new, self._new = self._new, []
        self._front.add(new)
        values: dict[Series, float] = {}

        def show(gauge: str, value: float | None, *tags: str) -> None:
            if value is not None:
                values[Series(gauge, (self._sweep, *tags))] = float(value)

        states = Counter((pace.stage, "running") for pace in running.values()) + ended
        for stage in (_stage(False), _stage(True)):
            for state in ("running", *get_args(TrialStatus)):
                show("lsmha_trials", states[stage, state], stage, state)
        show("lsmha_best_objective", self._front.best, self._front.metrics[0])
        show("lsmha_hypervolume", self._front.hypervolume)
        for metric, value in zip(self._front.metrics, self._front.reference or (), strict=False):
            show("lsmha_hypervolume_reference", value, metric)
        show("lsmha_images_per_s", sum(pace.images_per_s or 0.0 for pace in running.values()))
        for run_id, pace in running.items():
            show("lsmha_trial_images_per_s", pace.images_per_s, run_id)
            show("lsmha_trial_gpu_memory_gib", pace.gpu_memory_gib, run_id)
        return values

    def _show_until_stopped(self) -> None:
        stopped = failed = False
        while True:
            try:
                self._show(self.values())
            except Exception as error:
                if not failed:
                    failed = True
                    with suppress(Exception):
                        self._say(f"metrics are not shown: {describe_error(error)}")
            if stopped:
                return
            stopped = self._stop.wait(PERIOD_S)

    def _show(self, values: dict[Series, float]) -> None:
        # A run that has ended shows 0 once, and is forgotten by Ray; where Ray forgets nothing, it stays at 0.
        for series in self._shown - values.keys():
            self._set(series, 0.0)
        self._shown = set(values)
        for series, value in values.items():
            self._set(series, value)

    def _set(self, series: Series, value: float) -> None:
        description, tags = GAUGES[series.gauge]
        if series.gauge not in self._gauges:
            self._gauges[series.gauge] = Gauge(series.gauge, description, tags)
        self._gauges[series.gauge].set(value, dict(zip(tags, series.tags, strict=True)))


class FrontSoFar:
    """The front of completed trials as they come, and its hypervolume against a reference that stays."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._objectives = ledger.config.objectives
        self._directions = [objective.direction for objective in self._objectives]
        self._points = np.empty((0, len(self._objectives)))
        self.metrics = [objective.metric for objective in self._objectives]
        self.reference: list[float] | None = None
        """As `lsmha_hypervolume_reference` is described."""
        self.hypervolume: float | None = None
        """None as long as there is no reference."""

    @property
    def best(self) -> float | None:
        """Best value of the first objective."""
        first = self._points[:, 0]
        if not len(first):
            return None
        return float(first.max() if self._directions[0] == "maximize" else first.min())

    def add(self, records: list[TrialRecord]) -> None:
        """Take note of more completed trials. Only the front is kept, so the thousandth costs what the tenth did."""
        if records:
            points = np.concatenate([self._points, objective_values(records, self._objectives)])
            self._points = points[pareto_mask(points, self._directions)]
        had_reference = self.reference is not None
        if not had_reference:
            self.reference = self._first_batch_worsened()
        if self.reference is not None and (records or not had_reference):
            self.hypervolume = hypervolume(self._points, self._directions, self.reference)

    def _first_batch_worsened(self) -> list[float] | None:
        """The reference point, if the first batch with a completed trial has ended: the same at whatever time."""
        for trials in self._ledger.tried_together():
            ended = [self._ledger.tried(trial) for trial in trials]
            if any(record is None for record in ended):
                return None
            values = objective_values([record for record in ended if record and record.completed], self._objectives)
            values = values[np.isfinite(values).all(axis=1)]
            if len(values):
                return [
                    float(column.min() / 2 if direction == "maximize" else column.max() * 2)
                    for column, direction in zip(values.T, self._directions, strict=True)
                ]
        return None


def _stage(finalist: bool) -> str:
    return "finalists" if finalist else "trials"


def _finite(value: Any) -> float | None:
    """The number, if it is one; a worker can tell anything."""
    return value if isinstance(value, int | float) and math.isfinite(value) else None
