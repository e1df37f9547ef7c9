"""Trained models on disk: exact weights, and what they were trained on."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_data import ALL_AUGMENTATION, assert_same_bits, tiny_model, tiny_recipe

from lsmha.config import ModelConfig, TrainConfig
from lsmha.data import Dataset
from lsmha.errors import DamagedFileError
from lsmha.models import CCT
from lsmha.training import TrainState, predict_logits, train
from lsmha.training.saved import load_logits, load_model, load_network, logits_path, save_logits, save_model

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"positional_embedding": "sine"},
        {"num_conv_blocks": 1, "conv_kind": "depthwise"},
        {"num_conv_blocks": 2, "conv_kind": "residual", "num_heads": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_loaded_model_gives_exactly_the_same_logits(
    settings: dict[str, Any], ema_decay: float | None, tiny: Dataset, tmp_path: Path
) -> None:
    trained = train(
        tiny_model(drop_path=0.2, attn_drop=0.2, **settings), tiny_recipe(ema_decay=ema_decay), tiny, device=CPU
    )
    model = trained.evaluated_model
    save_model(model, tmp_path / "model", dataset=tiny, train_config=trained.config)
    loaded = load_model(tmp_path / "model")
    assert not loaded.training
    assert loaded.config == model.config
    assert torch.equal(
        predict_logits(loaded, tiny.test.images, tiny, device=CPU),
        predict_logits(model, tiny.test.images, tiny, device=CPU),
    )
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


def test_config_says_how_to_build_train_and_feed(tiny: Dataset, tmp_path: Path) -> None:
    recipe = tiny_recipe(augment=ALL_AUGMENTATION, ema_decay=0.5)
    state = TrainState(tiny_model(), recipe, tiny, device=CPU)
    save_model(state.evaluated_model, tmp_path, dataset=tiny, train_config=recipe)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    text = (tmp_path / "config.json").read_text(encoding="utf-8")
    assert text.endswith("}\n")
    config = json.loads(text)
    assert sorted(config) == ["checksum", "data", "model", "train"]
    assert ModelConfig.model_validate(config["model"]) == tiny_model()
    assert TrainConfig.model_validate(config["train"]) == recipe
    assert config["data"] == {
        "name": "tiny",
        "class_names": ["a", "b", "c"],
        "mean": list(tiny.mean),
        "std": list(tiny.std),
        "test_fingerprint": tiny.fingerprint,
    }


def test_saving_again_replaces(tiny: Dataset, tmp_path: Path) -> None:
    for settings in ({}, {"embed_dim": 16}):
        save_model(CCT(tiny_model(**settings)), tmp_path, dataset=tiny, train_config=tiny_recipe())
    assert load_model(tmp_path).config.embed_dim == 16
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("settings", [{"embed_dim": 16}, {"depth": 3}, {"depth": 1}, {"num_conv_blocks": 1}], ids=str)
def test_weights_that_do_not_fit_are_refused(settings: dict[str, Any], tiny: Dataset, tmp_path: Path) -> None:
    save_model(CCT(tiny_model()), tmp_path, dataset=tiny, train_config=tiny_recipe())
    path = tmp_path / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    del config["checksum"]  # written by hand
    config["model"] |= settings
    path.write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ValueError, match=r"model\.safetensors does not fit config\.json") as raised:
        load_model(tmp_path)
    assert str(tmp_path) in str(raised.value)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_absent_file_is_an_os_error(name: str, tiny: Dataset, tmp_path: Path) -> None:
    save_model(CCT(tiny_model()), tmp_path, dataset=tiny, train_config=tiny_recipe())
    (tmp_path / name).unlink()
    with pytest.raises(OSError, match=name):
        load_model(tmp_path)


def test_flipped_bits_of_the_weights_are_refused_by_name(tiny: Dataset, tmp_path: Path) -> None:
    model = CCT(tiny_model())
    save_model(model, tmp_path, dataset=tiny, train_config=tiny_recipe())
    path = tmp_path / "model.safetensors"
    content = path.read_bytes()
    generator = random.Random(0)
    # Where the checksum is no longer recognized as one, the weights are taken as those of a file without.
    checksum = range(content.index(b"lsmha-sha256:"), content.index(b"lsmha-sha256:") + 77)
    places = [*range(0, 400, 7), *(generator.randrange(len(content)) for _ in range(200))]
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        if place not in checksum:
            with pytest.raises(DamagedFileError, match=r"model\.safetensors"):
                load_model(tmp_path)
    for kept in (0, 7, 100, len(content) - 1):
        path.write_bytes(content[:kept])
        with pytest.raises(DamagedFileError, match=r"model\.safetensors"):
            load_model(tmp_path)
        with pytest.raises(DamagedFileError, match=r"model\.safetensors"):
            load_network(tmp_path, img_size=tiny.img_size)


def test_weights_without_a_seal_are_taken(tiny: Dataset, tmp_path: Path) -> None:
    save_model(CCT(tiny_model()), tmp_path, dataset=tiny, train_config=tiny_recipe())
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    save_file(weights, path)
    assert_same_bits(dict(load_model(tmp_path).state_dict()), weights)


def test_a_flipped_bit_of_logits_is_refused_or_does_no_harm(tiny: Dataset, tmp_path: Path) -> None:
    save_logits(CCT(tiny_model()), tmp_path, "test", dataset=tiny, device=CPU)
    path = logits_path(tmp_path, "test")
    content = path.read_bytes()
    whole = load_logits(tmp_path, "test")
    assert whole.fingerprint == tiny.fingerprint
    refused = harmless = 0
    places = range(0, 8 * len(content), 7)  # of every eight bytes, each bit of another one
    for place in places:
        damaged = bytearray(content)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            assert_same_bits(tuple(load_logits(tmp_path, "test")), tuple(whole))
        except DamagedFileError as error:
            refused += str(path) in str(error)
        else:
            harmless += 1
    assert refused + harmless == len(places)
    assert harmless <= 8 * 77 / 7 + 1, "only the checksum itself may go unnoticed"
