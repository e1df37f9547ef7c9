"""The study as Optuna reads it back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from orchestrator.config.sweep import SweepConfig
from orchestrator.reporting.study_export import write_study
from orchestrator.run_folder.content_hash import content_hash
from orchestrator.run_folder.ledger import Ledger
from orchestrator.run_folder.records import Fingerprint, SuggestionBatch, TrialRecord, trial_id

CONFIG = SweepConfig.model_validate(
    {
        "name": "a.sweep",
        "space": {
            "num_heads": [1, 2, 4],
            "depth": {"low": 1, "high": 6, "step": 2},
            "conv_kind": ["residual", "conv3x3"],
            "learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
            "mlp_ratio": {"low": 1.0, "high": 4.0},
        },
    }
)
POINTS: list[dict[str, Any]] = [
    {"num_heads": 2, "depth": 3, "conv_kind": None, "learning_rate": 1e-3, "mlp_ratio": 1.5},
    {"num_heads": None, "depth": 5, "conv_kind": "conv3x3", "learning_rate": 1e-4, "mlp_ratio": None},
    {"num_heads": 4, "depth": 1, "conv_kind": None, "learning_rate": 1e-2, "mlp_ratio": 4.0},
]


def trial(number: int, point: dict[str, Any], accuracy: float | None, **fields: Any) -> TrialRecord:
    values: dict[str, Any] = {
        "id": trial_id(number),
        "trial": trial_id(number),
        "key": content_hash({"trial": number}),
        "status": "failed" if accuracy is None else "completed",
        "error": "DivergenceError: nan" if accuracy is None else None,
        "point": point,
        "seed": 0,
        "params": 1000,
        "macs": 2000,
        "latency_ms": 2.0 + number,
        "epochs": 2,
        "seconds": 1.5,
        "val_accuracy": accuracy,
    }
    return TrialRecord(**values | fields)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """Three trials, of which one failed, a finalist, and a proposal that was not tried yet."""
    ledger = Ledger.create(tmp_path / "run", CONFIG)
    ledger.begin_session(CONFIG, Fingerprint(data="d", recipe_version=1))
    ledger.add(SuggestionBatch(0, [*POINTS, {**POINTS[0], "num_heads": 1}], 0, 0.0))
    for number, (point, accuracy) in enumerate(zip(POINTS, (0.5, None, 0.75), strict=True)):
        ledger.add(trial(number, point, accuracy))
    ledger.add(trial(0, POINTS[0], 0.9, id="t0000-s0"))
    return ledger


def read(path: Path, name: str = CONFIG.name) -> optuna.Study:
    return optuna.load_study(study_name=name, storage=JournalStorage(JournalFileBackend(str(path))))


def test_optuna_reads_every_trial_that_has_ended(ledger: Ledger) -> None:
    path = ledger.folder / "study.journal"
    write_study(ledger, path)
    study = read(path)
    assert [direction.name for direction in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE, TrialState.FAIL, TrialState.COMPLETE]
    assert [trial.values for trial in study.trials] == [[0.5, 2.0], None, [0.75, 4.0]]
    assert [trial.user_attrs for trial in study.trials] == [
        {"id": "t0000"}, {"id": "t0001", "error": "DivergenceError: nan"}, {"id": "t0002"},
    ]  # fmt: skip
    assert {trial.number for trial in study.best_trials} == {0, 2}


def test_parameters_are_those_that_have_an_effect(ledger: Ledger) -> None:
    path = ledger.folder / "study.journal"
    write_study(ledger, path)
    trials = read(path).trials
    for trial, point in zip(trials, POINTS, strict=True):
        assert trial.params == {name: value for name, value in point.items() if value is not None}
        assert list(trial.params) == [name for name in CONFIG.space if name in trial.params]
    assert trials[0].distributions == {
        "num_heads": CategoricalDistribution((1, 2, 4)),
        "depth": IntDistribution(1, 5, step=2),
        "learning_rate": FloatDistribution(1e-4, 1e-2, log=True),
        "mlp_ratio": FloatDistribution(1.0, 4.0),
    }
    assert trials[1].distributions["conv_kind"] == CategoricalDistribution(("residual", "conv3x3"))


def test_made_again_it_says_the_same(ledger: Ledger, tmp_path: Path) -> None:
    paths = [tmp_path / "one.journal", tmp_path / "other.journal"]
    write_study(ledger, paths[0])
    write_study(Ledger.load(ledger.folder), paths[1])
    one, other = ([(t.state, t.values, t.params, t.user_attrs) for t in read(path).trials] for path in paths)
    assert one == other
    ledger.add(trial(3, {**POINTS[0], "num_heads": 1}, 0.6))
    write_study(ledger, paths[0])  # over an older one
    assert len(read(paths[0]).trials) == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.journal", "other.journal", "run"]


def test_one_objective_and_no_trials(tmp_path: Path) -> None:
    config = SweepConfig(name=CONFIG.name, space=CONFIG.space, objectives=[{"metric": "macs", "direction": "minimize"}])
    ledger = Ledger.create(tmp_path / "run", config)
    write_study(ledger, tmp_path / "study.journal")
    assert read(tmp_path / "study.journal").trials == []
    ledger.begin_session(config, Fingerprint(data="d", recipe_version=1))
    ledger.add(trial(0, POINTS[0], 0.5))
    write_study(ledger, tmp_path / "study.journal")
    assert read(tmp_path / "study.journal").best_trial.value == 2000
