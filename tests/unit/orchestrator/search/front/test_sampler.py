"""The sampler in studies of Optuna."""

from __future__ import annotations

import numpy as np
import optuna
from made_up_curves import scores_of
from optuna.trial import TrialState

from orchestrator.search.front.features import structure_of
from orchestrator.search.front.gain import Reference, Staircase
from orchestrator.search.front.problem import FrontProblem, unit_spread
from orchestrator.search.front.sampler import FrontSampler

POINTS = [{"width": width, "kind": kind} for width in range(1, 21) for kind in ("plain", "fused")]
COST = np.array([point["width"] + (point["kind"] == "fused") for point in POINTS], dtype=float)
SCORE = scores_of(FrontProblem(COST, structure_of(POINTS), unit_spread([COST]), (27,)), noise=0.0)[:, 0]


def objective(trial: optuna.Trial) -> tuple[float, float]:
    width = trial.suggest_int("width", 1, 20)
    place = POINTS.index({"width": width, "kind": trial.suggest_categorical("kind", ["plain", "fused"])})
    return float(SCORE[place]), float(COST[place])


def study_with(seed: int = 0, direction: str = "maximize") -> optuna.Study:
    return optuna.create_study(
        directions=[direction, "minimize"], sampler=FrontSampler(POINTS, COST.tolist(), seed=seed)
    )


def hypervolume(study: optuna.Study) -> float:
    values = np.array([trial.values for trial in study.trials])
    reference = Reference.behind(COST, SCORE)
    whole = Staircase.under(COST, SCORE, reference).hypervolume
    return Staircase.under(values[:, 1], values[:, 0], reference).hypervolume / whole


def test_it_finds_the_front_with_few_trials() -> None:
    found = []
    for sampler in (FrontSampler(POINTS, COST.tolist()), optuna.samplers.RandomSampler(seed=0)):
        study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
        study.optimize(objective, n_trials=14)
        found.append(hypervolume(study))
    assert found[0] > 0.9
    assert found[0] > found[1]


def test_each_point_comes_once_and_the_end_of_the_space_is_the_end() -> None:
    study = study_with()
    study.optimize(objective, n_trials=100)
    tried = [(trial.params["width"], trial.params["kind"]) for trial in study.trials[: len(POINTS)]]
    assert len(set(tried)) == len(POINTS)
    assert len(study.trials) <= len(POINTS) + 1


def test_trials_at_the_same_time_are_of_different_points() -> None:
    study = study_with()
    trials = [study.ask() for _ in range(12)]
    points = {
        (trial.suggest_int("width", 1, 20), trial.suggest_categorical("kind", ["plain", "fused"])) for trial in trials
    }
    assert len(points) == 12


def test_failed_points_do_not_come_again() -> None:
    study = study_with()
    failed = []
    for _ in range(8):
        trial = study.ask()
        failed.append(objective(trial))
        study.tell(trial, state=TrialState.FAIL)
    study.optimize(objective, n_trials=20)
    assert not {tuple(trial.values) for trial in study.trials[8:]} & set(failed)


def test_a_loss_is_minimized() -> None:
    study = study_with(direction="minimize")

    def loss(trial: optuna.Trial) -> tuple[float, float]:
        score, cost = objective(trial)
        return 1 - score, cost

    study.optimize(loss, n_trials=14)
    other = study_with()
    other.optimize(objective, n_trials=14)
    assert [trial.params for trial in study.trials] == [trial.params for trial in other.trials]
