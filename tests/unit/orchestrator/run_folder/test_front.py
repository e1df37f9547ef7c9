"""The front: from the search's latencies first, then from those of the rounds, with ties."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.config.sweep import ObjectiveConfig
from orchestrator.run_folder.front import choose_front, expected_on_front
from orchestrator.run_folder.records import LatencyRecord, TrialRecord

OBJECTIVES = (
    ObjectiveConfig(metric="val_accuracy", direction="maximize"),
    ObjectiveConfig(metric="latency_ms", direction="minimize"),
)


def trial(name: str, accuracy: float | None, latency: float | None, *, architecture: str = "") -> TrialRecord:
    return TrialRecord(
        id=name,
        trial=name,
        key="k",
        status="failed" if accuracy is None else "completed",
        point={},
        seed=0,
        params=1,
        macs=1,
        latency_ms=latency,
        epochs=1,
        seconds=1.0,
        val_accuracy=accuracy,
        architecture=architecture or name,
    )


def rounds(low: float, median: float, high: float) -> LatencyRecord:
    row = {"latency_ms": median, "latency_p25_ms": low, "latency_p75_ms": high}
    return LatencyRecord("x", "k", [row], in_rounds=True)


TRIALS = [trial("a", 0.9, 3.0), trial("b", 0.8, 2.0), trial("c", 0.7, 2.5), trial("d", None, 1.0)]


def names(front: list[TrialRecord]) -> list[str]:
    return [record.id for record in front]


def test_before_the_rounds_the_search_counts() -> None:
    front = choose_front(TRIALS, OBJECTIVES, {})
    assert names(front) == ["a", "b"]
    assert front == TRIALS[:2]


def test_what_the_rounds_say_counts() -> None:
    front = choose_front(TRIALS, OBJECTIVES, {"a": rounds(2.9, 3.1, 3.2), "b": rounds(2.0, 2.2, 2.3)})
    assert [(record.id, record.latency_ms, record.latency_p25_ms, record.latency_p75_ms) for record in front] == [
        ("a", 3.1, 2.9, 3.2),
        ("b", 2.2, 2.0, 2.3),
    ]


def test_a_trial_that_comes_to_the_front_by_the_rounds_is_to_be_measured_too() -> None:
    measured = {"a": rounds(2.9, 3.0, 3.1), "b": rounds(2.6, 2.7, 2.8)}
    front = choose_front(TRIALS, OBJECTIVES, measured)
    assert [(record.id, record.latency_p25_ms) for record in front] == [("a", 2.9), ("b", 2.6), ("c", None)]
    front = choose_front(TRIALS, OBJECTIVES, measured | {"c": rounds(2.6, 2.65, 2.7)})
    assert names(front) == ["a", "b"]  # c ties with b, which is more accurate


def test_ties() -> None:
    measured = {"a": rounds(2.0, 2.2, 2.4), "b": rounds(2.1, 2.15, 2.3), "c": rounds(1, 1, 1)}
    assert names(choose_front(TRIALS, OBJECTIVES, measured)) == ["a", "c"]


def test_trials_of_one_architecture_share_its_latency() -> None:
    trials = [trial("a", 0.9, 3.0, architecture="x"), trial("b", 0.8, 3.0, architecture="x")]
    assert names(choose_front(trials, OBJECTIVES, {"x": rounds(1, 2, 3)})) == ["a"]


def test_without_latency_among_the_objectives_there_are_no_ties() -> None:
    objectives = (OBJECTIVES[0], ObjectiveConfig(metric="params", direction="minimize"))
    assert names(choose_front(TRIALS, objectives, {"a": rounds(1, 2, 3)})) == ["a"]


def test_paused_trials_are_expected_on_the_front_by_what_is_predicted() -> None:
    def paused(name: str, latency: float, predicted: float | None) -> TrialRecord:
        return replace(trial(name, 0.1, latency), status="paused", predicted=predicted, predicted_sd=0.01)

    pauses = [paused("e", 1.0, 0.5), paused("f", 4.0, 0.95), paused("g", 2.0, 0.7), paused("h", 0.5, None)]
    found = expected_on_front(TRIALS, pauses, OBJECTIVES)
    assert [(record.id, record.val_accuracy) for record in found] == [("f", 0.95), ("e", 0.5)]
    assert names(choose_front([*TRIALS, *pauses], OBJECTIVES, {})) == ["a", "b"]
    assert expected_on_front(TRIALS, [], OBJECTIVES) == []
