"""Read-outs: both solvers minimize what they say, all taps at once, on a network that stays as it is."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from sklearn.linear_model import LogisticRegression
from tiny_data import assert_same_bits, tiny_dataset, tiny_model
from torch.nn import functional as F

from lsmha.analysis import fitting
from lsmha.analysis.fitting import fit_readouts, minimize_cross_entropy
from lsmha.analysis.readouts import ReadOut
from lsmha.analysis.taps import Tap, taps_of
from lsmha.config import AnalysisConfig, AugmentConfig, ReadoutConfig
from lsmha.models import CCT

CPU = torch.device("cpu")


def network(**settings: Any) -> CCT:
    torch.manual_seed(0)
    return CCT(tiny_model(**settings)).eval()


def fit(model: CCT, kinds: tuple[str, ...] = ("attn", "block"), **settings: Any) -> dict[Tap, ReadOut]:
    return fit_readouts(
        model, taps_of(model.config, kinds), tiny_dataset(), ReadoutConfig(**settings), device=CPU, seed=3
    )


def features_of(num_images: int, width: int, *, num_classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(num_images) % num_classes
    centres = torch.randn(num_classes, width, generator=generator)
    noise = torch.randn(num_images, width, generator=generator)
    scales = torch.logspace(-2, 1, width)
    return (3 + centres[labels] + noise) * scales, labels


@pytest.mark.parametrize("weight_decay", [1e-3, 0.1])
def test_lbfgs_finds_the_minimum(weight_decay: float) -> None:
    features, labels = features_of(300, 12, num_classes=4)
    weight = minimize_cross_entropy(features, labels, 4, weight_decay=weight_decay, max_iterations=2000)
    reference = LogisticRegression(C=1 / (len(labels) * weight_decay), fit_intercept=False, tol=1e-10, max_iter=10_000)
    expected = reference.fit(features.double().numpy(), labels.numpy()).coef_

    def loss(candidate: torch.Tensor) -> float:
        wide = candidate.double()
        cross_entropy = F.cross_entropy(features.double() @ wide.T, labels)
        return (cross_entropy + 0.5 * weight_decay * wide.square().sum()).item()

    assert loss(weight) == pytest.approx(loss(torch.from_numpy(expected)), abs=1e-5)
    np.testing.assert_allclose(weight.numpy(), expected, atol=0.05 * np.abs(expected).max())


def test_lbfgs_with_a_dead_unit() -> None:
    features, labels = features_of(60, 5, num_classes=3)
    features[:, 2] = 0
    weight = minimize_cross_entropy(features, labels, 3, weight_decay=1e-3, max_iterations=200)
    assert torch.isfinite(weight).all()
    assert (weight[:, 2] == 0).all()


@pytest.mark.parametrize("pooling", ["mean", "flatten"])
def test_lbfgs_is_deterministic_and_learns(pooling: str) -> None:
    model = network()
    first, second = fit(model, pooling=pooling), fit(model, pooling=pooling)
    for tap in first:
        assert_same_bits(dict(first[tap].state_dict()), dict(second[tap].state_dict()))
        assert not any(parameter.requires_grad for parameter in first[tap].parameters())


@pytest.mark.parametrize("pooling", ["mean", "sequence", "flatten"])
def test_sgd_learns_every_tap_in_one_go(pooling: str) -> None:
    model = network()
    settings = {"solver": "sgd", "pooling": pooling, "epochs": 3, "batch_size": 8}
    together = fit(model, **settings)
    assert list(together) == taps_of(model.config, ("attn", "block"))
    again = fit(model, **settings)
    for tap, readout in together.items():
        assert_same_bits(dict(readout.state_dict()), dict(again[tap].state_dict()))
    untrained = fit(model, **(settings | {"learning_rate": 1e-12}))
    assert all(not torch.allclose(together[tap].fc.weight, untrained[tap].fc.weight) for tap in together)


def test_sgd_alone_and_together_are_the_same() -> None:
    """Read-outs share a forward pass but no weight: one alone learns what it learns beside others."""
    model, dataset = network(), tiny_dataset()
    config = ReadoutConfig(solver="sgd", epochs=2, batch_size=8)
    together = fit_readouts(model, taps_of(model.config, ("attn",)), dataset, config, device=CPU, seed=3)
    first = Tap("attn", 0)
    alone = fit_readouts(model, [first], dataset, config, device=CPU, seed=3)
    torch.testing.assert_close(alone[first].fc.weight, together[first].fc.weight)


def test_both_solvers_solve_the_same_problem() -> None:
    model = network()
    settings = {"weight_decay": 0.1, "pooling": "mean"}
    exact = fit(model, **settings)
    annealed = fit(
        model,
        **settings,
        solver="sgd",
        epochs=400,
        batch_size=48,
        learning_rate=0.3,
        momentum=0.9,
        lr_decay=0.99,
        augment=AugmentConfig(),
    )
    for tap in exact:
        torch.testing.assert_close(annealed[tap].fc.weight, exact[tap].fc.weight, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("solver", ["lbfgs", "sgd"])
def test_the_network_stays_as_it_is(solver: str) -> None:
    model = network(num_conv_blocks=1)  # batch norm has running statistics
    before = copy.deepcopy(dict(model.state_dict()))
    fit(model.train(), solver=solver, epochs=1, batch_size=8)
    assert_same_bits(dict(model.state_dict()), before)
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_initial_weights_follow_the_published_code() -> None:
    torch.manual_seed(0)
    readout = ReadOut(width=64, num_tokens=4, num_classes=50, pooling="flatten")
    bound = 1 / 256**0.5
    assert readout.fc.weight.abs().max() <= bound
    assert readout.fc.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
    assert readout.fc.bias is None


def test_fewer_training_images(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(
        fitting, "_solve_lbfgs", lambda model, readouts, train, *_, **__: seen.append(train.labels.bincount().tolist())
    )
    fit(network(), max_train_images=12)
    fit(network(), max_train_images=1000)
    assert seen == [[4, 4, 4], [16, 16, 16]]


def test_lbfgs_refuses_more_than_it_may_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "MAX_CACHED_BYTES", 1000)
    with pytest.raises(ValueError, match=r"readout: solver lbfgs may hold .* lower max_train_images"):
        fit(network())


def test_sgd_refuses_a_batch_that_the_images_do_not_fill() -> None:
    with pytest.raises(ValueError, match=r"readout.batch_size: at most the 48 training images are allowed, but got 49"):
        fit(network(), solver="sgd", batch_size=49)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"readout": {"pooling": "sequence"}}, "pooling must be mean or flatten for solver lbfgs"),
        ({"readout": {"augment": {"mixup_alpha": 0.2}}}, "augment must not mix images"),
        ({"taps": ["attn", "attn"]}, "values must be distinct"),
        ({"threshold": 1.0}, "threshold"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        AnalysisConfig.model_validate(settings)
