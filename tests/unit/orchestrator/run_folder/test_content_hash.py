"""Keys: equal for equal work, different as soon as anything differs that results depend on."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from lsmha.config import AugmentConfig, ModelConfig, TrainConfig
from orchestrator.run_folder import content_hash as identity
from orchestrator.run_folder.content_hash import content_hash, training_hash

MODEL = ModelConfig(embed_dim=16, depth=2, num_heads=2)
TRAIN = TrainConfig(epochs=3)
DATA = "d" * 64


def test_a_key_is_64_hex_digits_and_stays() -> None:
    # A key that changed would orphan every record there is.
    text = rb'{"a":{"x":"1","y":true},"b":[1,2.5,null,"\u00e9"]}'
    key = content_hash({"b": [1, 2.5, None, "é"], "a": {"y": True, "x": "1"}})
    assert key == hashlib.sha256(text).hexdigest()


def test_the_order_of_names_does_not_matter_but_that_of_values_does() -> None:
    assert content_hash({"a": 1, "b": {"c": 2, "d": 3}}) == content_hash({"b": {"d": 3, "c": 2}, "a": 1})
    assert content_hash({"a": [1, 2]}) != content_hash({"a": [2, 1]})
    assert content_hash({"a": 1}) != content_hash({"a": "1"})
    assert content_hash({"a": None}) != content_hash({})


def test_what_is_not_finite_has_no_key() -> None:
    with pytest.raises(ValueError, match="JSON"):
        content_hash({"a": float("nan")})


def test_equal_work_has_one_key() -> None:
    again = training_hash(ModelConfig(**MODEL.model_dump()), TrainConfig(**TRAIN.model_dump()), "d" * 64)
    assert again == training_hash(MODEL, TRAIN, DATA)


def test_every_setting_of_a_training_run_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    models: list[dict[str, Any]] = [
        {"depth": 3}, {"num_heads": 4}, {"num_conv_blocks": 1}, {"drop_path": 0.05}, {"img_size": 28},
        {"num_classes": 7},
    ]  # fmt: skip
    recipes: list[dict[str, Any]] = [
        {"seed": 1}, {"epochs": 4}, {"learning_rate": 1e-4}, {"batch_size": 64}, {"precision": "fp32"},
        {"augment": AugmentConfig(flip=not TRAIN.augment.flip)},
    ]  # fmt: skip
    keys = [training_hash(MODEL, TRAIN, DATA)]
    keys += [training_hash(MODEL.model_copy(update=changed), TRAIN, DATA) for changed in models]
    keys += [training_hash(MODEL, TRAIN.model_copy(update=changed), DATA) for changed in recipes]
    keys.append(training_hash(MODEL, TRAIN, "e" * 64))
    monkeypatch.setattr(identity, "RECIPE_VERSION", identity.RECIPE_VERSION + 1)
    keys.append(training_hash(MODEL, TRAIN, DATA))
    assert len(set(keys)) == len(keys) == len(models) + len(recipes) + 3


@pytest.mark.parametrize(
    ("one", "other"),
    [
        # A plain CNN has no heads, and no conv blocks have no kind.
        ({"num_conv_blocks": 2, "num_heads": 1}, {"num_conv_blocks": 2, "num_heads": 4}),
        ({"num_conv_blocks": 0, "conv_kind": "conv3x3"}, {"num_conv_blocks": 0, "conv_kind": "depthwise"}),
    ],
)
def test_settings_without_effect_make_the_same_network(one: dict[str, Any], other: dict[str, Any]) -> None:
    models = [MODEL.model_copy(update=settings) for settings in (one, other)]
    assert models[0] != models[1]
    first, second = (training_hash(model, TRAIN, DATA) for model in models)
    assert first == second
