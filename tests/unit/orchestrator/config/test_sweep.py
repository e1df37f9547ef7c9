"""The YAML of a sweep: how it is read, what is refused, and that it survives being written and read again."""

from __future__ import annotations

import json
import os
from pathlib import Path

import jsonschema
import pytest
from repository import SEARCH_SPACES
from ruamel.yaml import YAML

from orchestrator.config.sweep import SweepConfig, sweep_schema
from orchestrator.config.yaml import dump_yaml, load_sweep_config, plain_settings
from orchestrator.errors import UserError

MINIMAL = "name: a\nspace: {num_heads: [1, 2]}\n"


@pytest.fixture
def load(tmp_path: Path):
    """Loads a sweep from YAML text."""

    def load_text(text: str, *overrides: str) -> SweepConfig:
        file = tmp_path / "space.yaml"
        file.write_text(text)
        return load_sweep_config(file, list(overrides))

    return load_text


def refusal(load, text: str, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load(text, *overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("file", SEARCH_SPACES, ids=lambda file: file.stem)
def test_written_and_read_again_a_sweep_is_the_same(file: Path, tmp_path: Path) -> None:
    config = load_sweep_config(file)
    dump_yaml(config, tmp_path / "config.yaml")
    assert load_sweep_config(tmp_path / "config.yaml") == config


def test_every_kind_of_dimension_survives_being_written(load, tmp_path: Path) -> None:
    space = (
        "{num_heads: [4, 1], depth: {low: 1, high: 5, step: 2}, learning_rate: {low: 1e-4, high: 1e-2, log: true},"
        " conv_kind: [residual], drop_path: {low: 0.0, high: 0.2}}"
    )
    point = "{num_heads: 1, depth: 3, learning_rate: 1e-3, conv_kind: residual, drop_path: 0.1}"
    config = load(f"name: 'on'\nspace: {space}\nsearch: {{points_to_evaluate: [{point}]}}\nfinalists: {{seeds: [3]}}")
    dump_yaml(config, tmp_path / "config.yaml")
    assert load_sweep_config(tmp_path / "config.yaml") == config
    assert list(config.space) == ["num_heads", "depth", "learning_rate", "conv_kind", "drop_path"]


def test_yaml_1_2_numbers_and_words(load) -> None:
    config = load(MINIMAL + "train: {learning_rate: 1e-3, grad_clip_norm: 1, batch_size: 0o10}\ndata: {path: on}")
    assert config.train.learning_rate == 0.001
    assert config.train.grad_clip_norm == 1.0
    assert config.train.batch_size == 8
    assert config.data.path == "on"


def test_settings_over_the_file(load) -> None:
    config = load(
        MINIMAL + "train: {epochs: 3}",
        "train.learning_rate=2e-3",
        "train.augment.flip=true",
        "space.num_heads=[4, 8]",
        "data.path=/a=b",
        "train.grad_clip_norm=",
    )
    assert config.train.epochs == 3
    assert config.train.learning_rate == 0.002
    assert config.train.augment.flip is True
    assert config.space == {"num_heads": [4, 8]}
    assert config.data.path == "/a=b"
    assert config.train.grad_clip_norm is None


@pytest.mark.parametrize("override", ["train.epochs", "=3", "train..epochs=3", ".epochs=3", "train.=3", ""])
def test_malformed_setting(load, override: str) -> None:
    message = refusal(load, MINIMAL, override)
    assert message.startswith("--set")
    assert repr(override) in message


def test_setting_below_a_single_value(load) -> None:
    assert "train.epochs.x=1" in refusal(load, MINIMAL + "train: {epochs: 3}", "train.epochs.x=1")


@pytest.mark.parametrize("override", ["train.epochs=[1", "train.epochs={a: 1, a: 2}", "train.epochs=[&a 1, *a]"])
def test_setting_with_bad_yaml(load, override: str) -> None:
    assert override.split("=")[0] in refusal(load, MINIMAL, override)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (MINIMAL + "name: b", ["duplicate key", "name"]),
        (MINIMAL + "train: {epochs: 1, epochs: 2}", ["duplicate key", "epochs"]),
        ("name: a\nspace: {num_heads: &heads [1, 2], depth: *heads}", ["aliases are not allowed"]),
        ("name: [a\nspace: {", ["space.yaml"]),
        ("name: a\n\tspace: 1", ["line 2"]),
        ("", ["mapping"]),
        ("- name: a", ["mapping"]),
        ("just words", ["mapping"]),
    ],
)
def test_text_that_is_no_sweep(load, text: str, words: list[str]) -> None:
    message = refusal(load, text)
    for word in words:
        assert word in message


@pytest.mark.parametrize("text", ["\x00", "a: \x07"])
def test_control_characters(load, text: str) -> None:
    assert "space.yaml" in refusal(load, text)


def test_text_that_is_not_utf_8(tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_bytes(b"name: \xff")
    with pytest.raises(UserError, match="not UTF-8"):
        load_sweep_config(tmp_path / "space.yaml")


def test_an_ampersand_is_no_anchor(load) -> None:
    assert load(MINIMAL + "data: {path: 'a & b *c'}").data.path == "a & b *c"


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("trian: {epochs: 1}", "trian", "unknown key"),
        ("train: {epoch: 1}", "train.epoch", "unknown key"),
        ("train: {augment: {flips: true}}", "train.augment.flips", "unknown key"),
        ("train: {epochs: 1.5}", "train.epochs", "1.5"),
        ("train: {epochs: '3'}", "train.epochs", "'3'"),
        ("train: {epochs: true}", "train.epochs", "True"),
        ("train: {learning_rate: .nan}", "train.learning_rate", "nan"),
        ("train: {learning_rate: .inf}", "train.learning_rate", "inf"),
        ("train: {optimizer: lion}", "train.optimizer", "'lion'"),
        ("train: 3", "train", "3"),
        ("model: {embed_dim: [64]}", "model.embed_dim", "[64]"),
        ("model: {img_size: 32}", "img_size", "32"),
        ("model: {num_heads: 3}", "num_heads", "3"),
        ("data: {name: mnist}", "data.name", "'mnist'"),
        ("latency: {batch_sizes: []}", "latency.batch_sizes", "[]"),
        ("latency: {batch_sizes: [0]}", "latency.batch_sizes.0", "0"),
        ("search: {num_trials: 0}", "search.num_trials", "0"),
        ("resources: {cpus_per_trial: 3, workers_per_trial: 2}", "cpus_per_trial", "3"),
        ("resources: {gpus_per_trial: 1.5}", "gpus_per_trial", "1.5"),
        ("finalists: {seeds: [1, 1]}", "finalists.seeds", "[1, 1]"),
        ("objectives: []", "objectives", "[]"),
        ("objectives: [{metric: speed, direction: minimize}]", "objectives.0.metric", "'speed'"),
        ("seed: -1", "seed", "-1"),
        ("search: {scheduler: asha}", "search.scheduler: must be fifo", "'asha'"),
        ("search: {strategy: best}", "search.strategy", "'best'"),
        (
            "search: {strategy: front}\nobjectives: [{metric: val_accuracy, direction: maximize}]",
            "search.strategy: must be sampler where the objectives are val_accuracy (maximize)",
            "'front'",
        ),
        (
            "search: {strategy: moasha}\nobjectives: [{metric: val_accuracy, direction: maximize}, "
            "{metric: latency_ms, direction: maximize}]",
            "search.strategy: must be sampler",
            "latency_ms (maximize)",
        ),
        (
            "search: {strategy: front, points_to_evaluate: [{num_heads: 2}]}",
            "search.points_to_evaluate: must be empty",
            "1 points",
        ),
        ("search: {strategy: front, rungs: [3, 1, 9]}\ntrain: {epochs: 9}", "search.rungs", "[3, 1, 9]"),
        ("search: {strategy: front, rungs: [1, 3]}\ntrain: {epochs: 9}", "train.epochs=9", "[1, 3]"),
        ("search: {max_epochs: 1.5}", "search.max_epochs", "1.5"),
        ("search: {max_epochs: 0}", "search.max_epochs", "0"),
        ("search: {min_gain: 1}", "search.min_gain", "1"),
        ("search: {scheduler: hyperband}", "search.scheduler", "'hyperband'"),
        (
            "search: {scheduler: median}\nobjectives: [{metric: params, direction: minimize}]",
            "search.scheduler: must be fifo where the objectives are params",
            "'median'",
        ),
        (
            "search: {scheduler: asha, grace_epochs: 9}\ntrain: {epochs: 8}\n"
            "objectives: [{metric: val_loss, direction: minimize}]",
            "search.grace_epochs <= train.epochs must hold",
            "search.grace_epochs=9, train.epochs=8",
        ),
    ],
)
def test_a_bad_setting_is_named_with_its_value(load, section: str, field: str, value: str) -> None:
    message = refusal(load, MINIMAL + section)
    assert field in message
    assert value in message


@pytest.mark.parametrize(
    ("sections", "strategy"),
    [
        ("", "front"),
        ("search: {max_epochs: 0.3, max_hours: 2, rungs: [5, 10]}\ntrain: {epochs: 10}", "front"),
        ("search: {sampler: nsga2}", "sampler"),
        ("search: {num_trials: 20}", "sampler"),  # the default, but somebody wants it
        ("search: {strategy: auto, suggestion_batch: 4}", "sampler"),
        ("search: {strategy: front, num_trials: 20}", "front"),
        ("search: {strategy: sampler}", "sampler"),
        ("objectives: [{metric: params, direction: minimize}, {metric: val_loss, direction: minimize}]", "front"),
        ("objectives: [{metric: val_accuracy, direction: maximize}]", "sampler"),
        (
            "objectives: [{metric: val_loss, direction: minimize}, {metric: seconds, direction: minimize}]",
            "sampler",
        ),
        ("space: {num_heads: [1, 2], learning_rate: {low: 0.1, high: 0.2}}", "sampler"),
        ("space: {num_heads: [1, 2], batch_size: {low: 1, high: 1000}}", "front"),
        ("space: {num_heads: [1, 2], batch_size: {low: 1, high: 2001}}", "sampler"),
        ("space: {num_heads: [1, 2], batch_size: {low: 1, high: 2001, step: 4}}", "front"),
    ],
)
def test_front_is_the_strategy_where_nothing_speaks_against_it(load, sections: str, strategy: str) -> None:
    config = load((MINIMAL if "space" not in sections else "name: a\n") + sections)
    assert config.search.strategy == strategy
    # What a run wrote down is what it goes on with, though all settings are there.
    assert SweepConfig.model_validate(plain_settings(config)) == config


def test_a_strategy_refuses_a_continuous_space(load) -> None:
    text = "name: a\nsearch: {strategy: front}\nspace: {learning_rate: {low: 0.1, high: 0.2}}"
    message = refusal(load, text)
    assert "space.learning_rate: must be a list or a range of whole numbers for search.strategy front" in message
    assert "low=0.1" in message


@pytest.mark.parametrize(
    ("dimension", "value"),
    [
        ("num_heads: []", "[]"),
        ("num_heads: 4", "4"),
        ("num_heads: [1, 1]", "[1, 1]"),
        ("num_heads: [0]", "0"),
        ("num_heads: [1.5]", "1.5"),
        ("num_heads: [true]", "True"),
        ("num_heads: {low: 4, high: 1}", "low=4"),
        ("num_heads: {low: 1}", "num_heads.high"),
        ("num_heads: {low: 1, high: 4, stp: 2}", "num_heads.stp"),
        ("num_heads: {low: 1.0, high: 4.0}", "1.0"),
        ("learning_rate: {low: 0.0, high: 0.1, log: true}", "low=0.0"),
        ("learning_rate: {low: 0.1, high: 0.1}", "low=0.1"),
        ("conv_kind: [conv5x5]", "'conv5x5'"),
        ("img_size: [32, 64]", "'img_size'"),
        ("seed: [0, 1]", "'seed'"),
        ("heads: [1]", "'heads'"),
    ],
)
def test_a_bad_dimension_is_named_with_its_value(load, dimension: str, value: str) -> None:
    message = refusal(load, f"name: a\nspace: {{{dimension}}}")
    assert dimension.split(":")[0] in message
    assert value in message


@pytest.mark.parametrize("name", ["../x", "/x", "a/b", "", ".hidden", "a b", "x" * 65, "a\n"])
def test_a_name_is_one_plain_path_component(load, name: str) -> None:
    assert "name" in refusal(load, f"name: {name!r}\nspace: {{num_heads: [1]}}".replace("'", '"'))


SCHEMA = json.loads((SEARCH_SPACES[0].parent / "sweep.schema.json").read_text())


def test_schema_file_is_that_of_the_code() -> None:
    assert sweep_schema() == SCHEMA


@pytest.mark.parametrize("path", SEARCH_SPACES, ids=lambda path: path.stem)
def test_editors_accept_our_search_spaces(path: Path) -> None:
    jsonschema.validate(YAML(typ="safe", pure=True).load(path), SCHEMA)


def test_editors_see_a_mistake() -> None:
    with pytest.raises(jsonschema.ValidationError, match="num_conv_blocks"):
        jsonschema.validate({"name": "a", "space": {"depth": [1]}, "model": {"num_conv_blocks": -1}}, SCHEMA)


@pytest.mark.parametrize("path", ["data", "../data", "./x/*.parquet", "a folder/of images"])
def test_a_data_path_is_made_to_mean_the_same_in_every_folder(
    load, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = load(MINIMAL + f"data: {{path: '{path}'}}").with_absolute_data_path()
    assert config.data.path == os.path.abspath(path)
    monkeypatch.chdir("/")
    assert config.with_absolute_data_path() == config


@pytest.mark.parametrize("path", ["/data", "~/data", "~", "s3://bucket/data", "hf://datasets/some/one"])
def test_data_paths_that_mean_the_same_everywhere_are_left_alone(load, path: str) -> None:
    config = load(MINIMAL + f"data: {{path: '{path}'}}")
    assert config.with_absolute_data_path() == config


def test_no_data_path_is_none_afterwards(load) -> None:
    assert load(MINIMAL).with_absolute_data_path().data.path is None
