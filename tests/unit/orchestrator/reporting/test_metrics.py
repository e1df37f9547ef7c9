"""A sweep's metrics: what they say at each moment, what becomes of a run that ended, and what Ray may do to them."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray._private.ray_constants import PROMETHEUS_SERVICE_DISCOVERY_FILE
from repository import ROOT

from orchestrator.config.sweep import SweepConfig
from orchestrator.reporting import metrics
from orchestrator.reporting.metrics import GAUGES, Series, SweepMetrics
from orchestrator.run_folder.content_hash import content_hash
from orchestrator.run_folder.ledger import Ledger
from orchestrator.run_folder.records import DecisionRecord, SuggestionBatch, TrialRecord, trial_id

MONITORING = ROOT / "monitoring"
CONFIG = SweepConfig(name="watched", space={"num_heads": [1, 2, 4]})
"""val_accuracy up, latency_ms down."""


class Run:
    """What metrics look at in a ledger."""

    def __init__(self, *batches: int) -> None:
        self.config, self.batches = CONFIG, []
        self.trials: list[TrialRecord] = []
        self.finalists: list[TrialRecord] = []
        self.pauses: dict[str, TrialRecord] = {}
        self.decisions: list[DecisionRecord] = []
        for size in batches:
            self.batches.append(SuggestionBatch(sum(len(batch.points) for batch in self.batches), [{}] * size, 0, 0.0))

    tried_together = Ledger.tried_together

    def tried(self, run_id: str) -> TrialRecord | None:
        return {record.id: record for record in self.trials}.get(run_id)

    def record(self, run_id: str, accuracy: float | None, latency_ms: float = 1.0) -> TrialRecord:
        fields: dict[str, Any] = {"val_accuracy": accuracy, "latency_ms": latency_ms}
        record = TrialRecord(
            id=run_id,
            trial=run_id.split("-")[0],
            key=content_hash({"run": run_id}),
            status="failed" if accuracy is None else "completed",
            point={},
            **dict.fromkeys(("seed", "params", "macs", "epochs"), 1),
            seconds=1.0,
            **fields,
        )
        (self.trials if record.id == record.trial else self.finalists).append(record)
        return record


class Shown:
    """The metrics of a run, and their values by gauge."""

    def __init__(self, run: Run) -> None:
        self.run, self.metrics = run, SweepMetrics(run, pytest.fail)  # type: ignore[arg-type]

    def ended(self, number: int, accuracy: float | None, latency_ms: float = 1.0) -> None:
        self.metrics.ended(self.run.record(trial_id(number), accuracy, latency_ms))

    def values(self, gauge: str) -> dict[tuple[str, ...], float]:
        values = self.metrics.values()
        assert all(series.tags[0] == "watched" for series in values)
        assert all(len(series.tags) == len(GAUGES[series.gauge][1]) for series in values)
        return {series.tags[1:]: value for series, value in values.items() if series.gauge == gauge}

    def volume(self) -> float:
        return self.values("lsmha_hypervolume")[()]


def test_counts_by_stage_and_state() -> None:
    shown = Shown(Run(3))
    assert set(shown.values("lsmha_trials").values()) == {0.0}
    for number in range(3):
        shown.metrics.started(trial_id(number), finalist=False)
    shown.ended(0, 0.5)
    shown.ended(1, None)
    counts = shown.values("lsmha_trials")
    assert {state: counts["trials", state] for state in ("running", "completed", "failed")} == {
        "running": 1,
        "completed": 1,
        "failed": 1,
    }
    shown.metrics.started("t0000-s1", finalist=True)
    assert shown.values("lsmha_trials")["finalists", "running"] == 1
    shown.metrics.ended(shown.run.record("t0000-s1", 0.9))
    counts = shown.values("lsmha_trials")
    assert (counts["finalists", "running"], counts["finalists", "completed"], counts["trials", "completed"]) == (
        0,
        1,
        1,
    )
    assert shown.values("lsmha_best_objective") == {("val_accuracy",): 0.5}, "of the search's trials"


def test_a_trial_that_pauses_counts_as_one_that_does_until_it_goes_on() -> None:
    shown = Shown(Run(1))
    for epochs in (1, 3):
        shown.metrics.started("t0000", finalist=False)
        counts = shown.values("lsmha_trials")
        assert (counts["trials", "running"], counts["trials", "paused"]) == (1, 0)
        shown.metrics.ended(replace(shown.run.record("t0000", 0.5), status="paused", epochs=epochs))
        counts = shown.values("lsmha_trials")
        assert (counts["trials", "running"], counts["trials", "paused"]) == (0, 1)
    shown.metrics.started("t0000", finalist=False)
    shown.metrics.ended(shown.run.record("t0000", 0.6))
    counts = shown.values("lsmha_trials")
    assert (counts["trials", "completed"], counts["trials", "paused"]) == (1, 0)


def test_rates_are_those_of_running_trials() -> None:
    shown = Shown(Run(2))
    assert shown.values("lsmha_images_per_s") == {(): 0.0}
    for number in range(2):
        shown.metrics.started(trial_id(number), finalist=False)
    assert shown.values("lsmha_trial_images_per_s") == {}, "nothing is known before the first epoch"
    shown.metrics.epoch_ended("t0000", 100.0, 0.0)
    shown.metrics.epoch_ended("t0001", 30.0, 1.5)
    shown.metrics.epoch_ended("t0001", 50.0, 2.5)
    assert shown.values("lsmha_trial_images_per_s") == {("t0000",): 100.0, ("t0001",): 50.0}
    assert shown.values("lsmha_trial_gpu_memory_gib") == {("t0000",): 0.0, ("t0001",): 2.5}
    assert shown.values("lsmha_images_per_s") == {(): 150.0}
    shown.ended(0, 0.5)
    assert shown.values("lsmha_trial_images_per_s") == {("t0001",): 50.0}
    shown.metrics.started("t0001", finalist=False)  # again: its worker had died
    assert shown.values("lsmha_trial_images_per_s") == {}


@pytest.mark.parametrize("told", [None, float("nan"), float("inf"), "fast"])
def test_a_rate_that_is_none_is_not_shown(told: Any) -> None:
    shown = Shown(Run(1))
    shown.metrics.started("t0000", finalist=False)
    shown.metrics.epoch_ended("t0000", told, told)
    assert shown.values("lsmha_trial_images_per_s") == shown.values("lsmha_trial_gpu_memory_gib") == {}
    assert shown.values("lsmha_images_per_s") == {(): 0.0}


def test_hypervolume_against_a_reference_that_stays() -> None:
    shown = Shown(Run(3, 3))
    shown.ended(0, 0.4, 2.0)
    shown.ended(1, 0.8, 4.0)
    assert shown.values("lsmha_hypervolume") == shown.values("lsmha_hypervolume_reference") == {}
    assert shown.values("lsmha_best_objective") == {("val_accuracy",): 0.8}
    shown.ended(2, None)  # with it, the first batch has ended
    # Half the worst accuracy, double the worst latency: (0.2, 8).
    reference = {("val_accuracy",): 0.2, ("latency_ms",): 8.0}
    assert shown.values("lsmha_hypervolume_reference") == reference
    assert shown.volume() == pytest.approx((0.4 - 0.2) * (8 - 2) + (0.8 - 0.4) * (8 - 4))
    before = shown.volume()
    shown.ended(3, 0.1, 50.0)  # worse than anything
    assert (shown.volume(), shown.values("lsmha_hypervolume_reference")) == (before, reference)
    shown.ended(4, 0.8, 3.0)
    assert shown.volume() == pytest.approx(0.2 * 6 + 0.4 * 5)


def test_a_batch_without_a_result_gives_no_reference() -> None:
    shown = Shown(Run(1, 2))
    shown.ended(0, None)
    assert shown.values("lsmha_hypervolume_reference") == {}
    shown.ended(2, 0.6, 3.0)
    assert shown.values("lsmha_hypervolume_reference") == {}
    shown.ended(1, 0.8, 1.0)
    assert shown.values("lsmha_hypervolume_reference") == {("val_accuracy",): 0.3, ("latency_ms",): 6.0}


def test_a_resumed_sweep_shows_what_the_first_session_did() -> None:
    results = [(0.4, 2.0), (0.8, 4.0), (None, 1.0), (0.9, 1.5)]
    first = Shown(Run(2, 2))
    for number, (accuracy, latency_ms) in enumerate(results):
        first.ended(number, accuracy, latency_ms)
    first.metrics.ended(first.run.record("t0000-s0", None))
    assert SweepMetrics(first.run, pytest.fail).values() == first.metrics.values()  # type: ignore[arg-type]


class Ray:
    """Gauges as Ray has them: the last value set of each series."""

    def __init__(self) -> None:
        self.series: dict[Series, float] = {}
        self.broken = 0

    def gauge(self, name: str, description: str, tag_keys: tuple[str, ...]) -> Any:
        ray = self

        class Gauge:
            def set(self, value: float, tags: dict[str, str]) -> None:
                if ray.broken:
                    ray.broken -= 1
                    raise RuntimeError("Ray is not here\nbut elsewhere")
                ray.series[Series(name, tuple(tags[key] for key in tag_keys))] = value

        return Gauge()


@pytest.fixture
def ray_gauges(monkeypatch: pytest.MonkeyPatch) -> Ray:
    ray = Ray()
    monkeypatch.setattr(metrics, "Gauge", ray.gauge)
    monkeypatch.setattr(metrics, "PERIOD_S", 0.001)
    return ray


def test_what_is_left_when_a_sweep_ends(ray_gauges: Ray) -> None:
    run = Run(2)
    with SweepMetrics(run, pytest.fail) as shown:  # type: ignore[arg-type]
        shown.started("t0000", finalist=False)
        shown.started("t0001", finalist=False)
        shown.epoch_ended("t0000", 70.0, 1.0)
        rate = Series("lsmha_trial_images_per_s", ("watched", "t0000"))
        while ray_gauges.series.get(rate) != 70.0:
            time.sleep(0.001)
        shown.ended(run.record("t0000", 0.5))
    assert ray_gauges.series[rate] == 0.0, "a run that has ended trains no images"
    counts = {tags[2]: value for (gauge, tags), value in ray_gauges.series.items() if gauge == "lsmha_trials"
              and tags[1] == "trials"}  # fmt: skip
    assert counts == {"running": 0.0, "completed": 1.0, "stopped": 0.0, "paused": 0.0, "failed": 0.0}
    assert ray_gauges.series[Series("lsmha_best_objective", ("watched", "val_accuracy"))] == 0.5


def test_a_failure_is_told_once_and_got_over(ray_gauges: Ray, tmp_path: Path) -> None:
    ray_gauges.broken = 5
    said: list[str] = []
    with SweepMetrics(Run(1), said.append) as shown:  # type: ignore[arg-type]
        while not ray_gauges.series:
            time.sleep(0.001)
        shown.started("t0000", finalist=False)
    assert said == ["metrics are not shown: RuntimeError: Ray is not here"]
    assert Series("lsmha_trials", ("watched", "trials", "running")) in ray_gauges.series


def test_the_board_shows_every_gauge() -> None:
    board = json.loads((MONITORING / "grafana-board.json").read_text(encoding="utf-8"))
    targets = [target for panel in board["panels"] for target in panel["targets"]]
    queries = " ".join(target["expr"] for target in targets)
    assert set(re.findall(r"ray_(lsmha_\w+)", queries)) == set(GAUGES)
    assert {target["datasource"]["uid"] for target in targets} == {"${datasource}"}
    variables = {variable["name"] for variable in board["templating"]["list"]}
    assert set(re.findall(r"\$\{?(\w+)", json.dumps(board["panels"]))) == variables


def test_prometheus_finds_the_nodes_where_ray_lists_them() -> None:
    settings = yaml.safe_load((MONITORING / "prometheus.yml").read_text(encoding="utf-8"))
    (scraped,) = settings["scrape_configs"]
    assert [discovery["files"] for discovery in scraped["file_sd_configs"]] == [
        [f"/tmp/ray/{PROMETHEUS_SERVICE_DISCOVERY_FILE}"]
    ]
