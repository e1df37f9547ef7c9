"""What a later session may ask of a run, and what it is told when it may not."""

from __future__ import annotations

import re
from typing import Any

import pytest

from orchestrator.config.resume import merge_for_resume
from orchestrator.config.sweep import SweepConfig
from orchestrator.errors import UserError
from orchestrator.search.build import build_space, build_study

POINTS = [{"num_heads": heads, "depth": depth} for heads in (1, 2, 4, 8) for depth in (1, 2, 3, 4)]
SPEC: dict[str, Any] = {
    "name": "a",
    "data": {"name": "digits", "path": "/old"},
    "model": {"embed_dim": 16},
    "train": {"epochs": 2, "augment": {"translate": 1}},
    "space": {"num_heads": [1, 2, 4, 8], "depth": {"low": 1, "high": 4}},
    "search": {"num_trials": 8, "max_hours": 2.0, "points_to_evaluate": [POINTS[0]]},
    "finalists": {"max_finalists": 2, "seeds": [0, 1], "include": POINTS[:2]},
}


def changed(field: str, value: Any) -> SweepConfig:
    """SPEC with another value at a dotted name, or without it where that is None."""
    spec = {name: dict(part) if isinstance(part, dict) else part for name, part in SPEC.items()}
    section, _, rest = field.partition(".")
    if not rest:
        spec[section] = value
    elif value is None:
        spec.setdefault(section, {}).pop(rest, None)
    else:
        spec.setdefault(section, {})[rest] = value
    return SweepConfig.model_validate(spec)


RUN = SweepConfig.model_validate(SPEC)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("search.num_trials", 9),
        ("search.num_trials", 800),
        ("search.max_hours", 2.5),
        ("search.max_hours", None),
        ("search.suggestion_batch", 3),
        ("finalists.max_finalists", 5),
        ("finalists.seeds", [0, 1, 2]),
        ("finalists.seeds", [7, 1, 0]),
        ("finalists.include", POINTS[:3]),
        ("finalists.include", POINTS[2::-1]),
        ("finalists.resources", {"cpus_per_trial": 4}),
        ("resources", {"workers_per_trial": 2, "cpus_per_trial": 2, "max_concurrent_trials": 3}),
        ("loggers", ["tensorboard"]),
        ("data.path", "/new"),
        ("data.path", None),
        ("analysis", {"enabled": False, "threshold": 0.3, "readout": {"max_train_images": 99}}),
        ("committees", {"rules": ["majority"], "resamples": 100}),
        ("pruning", {"thresholds": [0.3]}),
    ],
)
def test_what_may_change(field: str, value: Any) -> None:
    asked = changed(field, value)
    assert asked != RUN
    expected = asked.search.model_copy(update={"startup_trials": RUN.search.startup()})
    assert merge_for_resume(RUN, asked) == asked.model_copy(update={"search": expected})


def test_the_same_again() -> None:
    pinned = merge_for_resume(RUN, RUN)
    assert merge_for_resume(pinned, RUN) == merge_for_resume(RUN, pinned) == pinned
    assert pinned.search.startup() == RUN.search.startup()


def test_the_same_again_changes_no_setting() -> None:
    assert merge_for_resume(RUN, RUN) == RUN


@pytest.mark.parametrize(
    ("field", "value", "line"),
    [
        ("name", "b", "name: must be 'a', as in the run, but got 'b'"),
        ("seed", 1, "seed: must be 0, as in the run, but got 1"),
        ("search.num_trials", 7, "search.num_trials: must be at least 8, as in the run, but got 7"),
        ("search.max_hours", 1.5, "search.max_hours: must be at least 2.0, as in the run, but got 1.5"),
        ("search.sampler", "random", "search.sampler: must be 'tpe', as in the run, but got 'random'"),
        ("search.startup_trials", 9, "search.startup_trials: must be 4, as in the run, but got 9"),
        ("search.points_to_evaluate", None, "search.points_to_evaluate: must be [{'num_heads': 1, 'depth': 1}], as in"),
        ("finalists.max_finalists", 1, "finalists.max_finalists: must be at least 2, as in the run, but got 1"),
        ("finalists.seeds", [0, 2], "finalists.seeds: must hold 1, as in the run, but got [0, 2]"),
        ("finalists.include", None, "finalists.include: must hold {'num_heads': 1, 'depth': 1}, as in"),
        ("finalists.epochs", 4, "finalists.epochs: must be None, as in the run, but got 4"),
        ("train.epochs", 3, "train.epochs: must be 2, as in the run, but got 3"),
        ("train.augment", {"translate": 2}, "train.augment.translate: must be 1, as in the run, but got 2"),
        ("model.embed_dim", 32, "model.embed_dim: must be 16, as in the run, but got 32"),
        ("data.split_seed", 1, "data.split_seed: must be 0, as in the run, but got 1"),
        ("data.max_train_images", 99, "data.max_train_images: must be None, as in the run, but got 99"),
        ("space.num_heads", [1, 2], "space.num_heads: must be [1, 2, 4, 8], as in the run, but got [1, 2]"),
        (
            "space.depth",
            {"low": 1, "high": 5},
            "space.depth: must be {'low': 1, 'high': 4, 'step': 1}, as in the run, but got {'low': 1, 'high': 5, ",
        ),
        ("objectives", [{"metric": "macs", "direction": "minimize"}], "objectives: must be [{'metric': 'val_accuracy'"),
        ("latency.batch_sizes", [2], "latency.batch_sizes: must be [1], as in the run, but got [2]"),
    ],
)
def test_what_may_not(field: str, value: Any, line: str) -> None:
    with pytest.raises(UserError, match="^" + re.escape(line)) as refused:
        merge_for_resume(RUN, changed(field, value))
    assert str(refused.value).endswith("; another sweep needs another --out")


def test_a_time_limit_cannot_be_set_where_there_was_none() -> None:
    with pytest.raises(UserError, match=r"search\.max_hours: must be at least unlimited, as in the run, but got 1"):
        merge_for_resume(changed("search.max_hours", None), changed("search.max_hours", 1.0))


def test_other_dimensions_are_another_sweep() -> None:
    other = {"num_heads": [1, 2, 4, 8], "mlp_ratio": [1.0, 2.0]}
    spec = SPEC | {"space": other, "search": {"num_trials": 8}, "finalists": {}}
    with pytest.raises(UserError, match=r"space\.depth: must be .*, as in the run, but got None.*\(and \d+ more\)"):
        merge_for_resume(SweepConfig.model_validate(SPEC), SweepConfig.model_validate(spec))


def test_all_problems_are_counted() -> None:
    spec = SPEC | {"seed": 1, "name": "b", "train": {"epochs": 3}}
    with pytest.raises(UserError, match=r"\(and 3 more\); another sweep needs another --out$"):
        merge_for_resume(RUN, SweepConfig.model_validate(spec))


@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
def test_more_trials_change_nothing_of_what_was_proposed(sampler: str) -> None:
    def first(config: SweepConfig) -> list[dict[str, Any]]:
        study = build_study(config, build_space(config))
        points = []
        for number in range(8):
            proposal = study.ask()
            points.append(proposal.point)
            study.tell(number, {"val_accuracy": proposal.model.depth / 9, "latency_ms": 1.0 * proposal.model.num_heads})
        return points

    run = SweepConfig.model_validate(SPEC | {"search": {"num_trials": 20, "sampler": sampler}})
    more = SweepConfig.model_validate(SPEC | {"search": {"num_trials": 200, "sampler": sampler}})
    assert more.search.startup() != run.search.startup()
    grown = merge_for_resume(run, more)
    assert (grown.search.num_trials, grown.search.startup()) == (200, run.search.startup())
    assert first(grown) == first(run)
    # And again after that.
    even_more = SweepConfig.model_validate(SPEC | {"search": {"num_trials": 400, "sampler": sampler}})
    assert merge_for_resume(grown, even_more).search.startup() == run.search.startup()
