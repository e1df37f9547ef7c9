"""What a user gets wrong: exit code 2, one line with the field, the value and what is allowed, nothing written."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from lsmha.config import TrainConfig
from orchestrator.cluster.capacity import Capacity, check_capacity, concurrent_trials
from orchestrator.config.sweep import ResourcesConfig, SweepConfig
from orchestrator.config.yaml import load_sweep_config
from orchestrator.errors import UserError
from orchestrator.loggers import experiment_loggers
from orchestrator.run_folder.ownership import owned
from orchestrator.search.space import SearchSpace
from orchestrator.search.study import ProposalStudy

HEAD = "name: a\n"
SPACE = "space: {num_heads: [1, 2]}\n"
MINIMAL = HEAD + SPACE


def assert_words(line: str, words: tuple[str, ...]) -> None:
    missing = [word for word in words if word not in line]
    assert not missing, line


@pytest.mark.parametrize(
    ("text", "words"),
    [
        # keys and sections
        (MINIMAL + "trian: {epochs: 1}", ("trian", "unknown key")),
        (MINIMAL + "train: {epoch: 1}", ("train.epoch", "unknown key")),
        (SPACE, ("name", "required")),
        (HEAD, ("space", "required")),
        (MINIMAL + "on: {push: 1}", ("on", "unknown key")),
        (MINIMAL + "'': 1", ("''", "unknown key")),
        (MINIMAL + '"a\\nb": 1', ("a b", "unknown key")),
        (MINIMAL + "1: 2", ("1", "keys should be strings")),
        (MINIMAL + "null: 2", ("None", "keys should be strings", "null")),
        (MINIMAL + "[a]: 2", ("('a',)", "keys should be strings")),
        (MINIMAL + "train: {true: 2}", ("train.1", "keys should be strings", "True")),
        (MINIMAL + "pruning: {enabled: true}", ("pruning.enabled", "unknown key")),
        (MINIMAL + "train:", ("train", "mapping", "null")),
        (MINIMAL + "train: [epochs, 1]", ("train", "mapping", "['epochs', 1]")),
        (MINIMAL + "train: {augment: true}", ("train.augment", "mapping", "True")),
        (HEAD + "space:", ("space", "mapping", "null")),
        (MINIMAL + "loggers: [tensorbord]", ("loggers.0", "'tensorboard'", "'tensorbord'")),
        (MINIMAL + "loggers: [mlflow, mlflow]", ("loggers", "distinct", "['mlflow', 'mlflow']")),
        (MINIMAL + "loggers: mlflow", ("loggers", "list", "'mlflow'")),
        (MINIMAL + "objectives:", ("objectives", "list", "null")),
        # types
        (SPACE + "name: 3", ("name", "string", "3")),
        (MINIMAL + "seed: one", ("seed", "integer", "'one'")),
        (MINIMAL + "data: digits", ("data", "'digits'")),
        (MINIMAL + "data: {val_fraction: '0.1'}", ("data.val_fraction", "number", "'0.1'")),
        (MINIMAL + "model: {depth: 2.5}", ("model.depth", "integer", "2.5")),
        (MINIMAL + "train: {epochs: true}", ("train.epochs", "integer", "True")),
        (MINIMAL + "train: {augment: {flip: 1}}", ("train.augment.flip", "boolean", "1")),
        (MINIMAL + "search: {suggestion_batch: x}", ("search.suggestion_batch", "integer", "'x'")),
        (MINIMAL + "latency: {batch_sizes: 1}", ("latency.batch_sizes", "1")),
        (MINIMAL + "resources: {cpus_per_trial: 1.5}", ("resources.cpus_per_trial", "integer", "1.5")),
        (MINIMAL + "finalists: {seeds: [a]}", ("finalists.seeds.0", "integer", "'a'")),
        (MINIMAL + "objectives: val_accuracy", ("objectives", "'val_accuracy'")),
        ("name: a\nspace: [1]", ("space", "mapping", "[1]")),
        (MINIMAL + "train: {learning_rate: '1e-3'}", ("train.learning_rate", "number", "'1e-3'")),
        (MINIMAL + "train: {learning_rate: true}", ("train.learning_rate", "number", "True")),
        (MINIMAL + "train: {learning_rate: [1e-3]}", ("train.learning_rate", "number", "[0.001]")),
        (MINIMAL + "train: {epochs: 1e3}", ("train.epochs", "integer", "1000.0")),
        (MINIMAL + "train: {epochs: 1:30}", ("train.epochs", "integer", "'1:30'")),
        (MINIMAL + "train: {epochs: 2001-01-01}", ("train.epochs", "integer", "'2001-01-01'")),
        (MINIMAL + "train: {epochs: 2001-13-45}", ("train.epochs", "integer", "'2001-13-45'")),
        (MINIMAL + "train: {epochs: }", ("train.epochs", "integer", "null")),
        (MINIMAL + "train: {optimizer: [adamw]}", ("train.optimizer", "'sgd'", "['adamw']")),
        (MINIMAL + "train: {augment: {flip: on}}", ("train.augment.flip", "boolean", "'on'")),
        (MINIMAL + "data: {download: yes}", ("data.download", "boolean", "'yes'")),
        (MINIMAL + "data: {download: off}", ("data.download", "boolean", "'off'")),
        (MINIMAL + "data: {path: 3}", ("data.path", "string", "3")),
        (MINIMAL + "search: {num_trials: 2.0}", ("search.num_trials", "integer", "2.0")),
        (
            MINIMAL + "search: {points_to_evaluate: {num_heads: 1}}",
            ("search.points_to_evaluate", "list", "{'num_heads': 1}"),
        ),
        (MINIMAL + "search: {points_to_evaluate: [1]}", ("search.points_to_evaluate.0", "mapping", "1")),
        (MINIMAL + "finalists: {seeds: '012'}", ("finalists.seeds", "list", "'012'")),
        (MINIMAL + "analysis: {enabled: 1}", ("analysis.enabled", "boolean", "1")),
        # bounds
        (MINIMAL + "train: {epochs: -1}", ("train.epochs", "greater than or equal to 1", "-1")),
        (MINIMAL + "train: {epochs: 1e30}", ("train.epochs", "integer", "1e+30")),
        (MINIMAL + f"train: {{epochs: 1{'0' * 30}}}", ("64 bits", "1" + "0" * 30, "line 3, column 17")),
        (MINIMAL + f"train: {{epochs: {'9' * 5000}}}", ("64 bits", "9999", "line 3, column 17")),
        (MINIMAL + f"model: {{embed_dim: 0x{'f' * 5000}}}", ("64 bits", "0xffff", "line 3, column 20")),
        (MINIMAL + "train: {epochs: .inf}", ("train.epochs", "integer", "inf")),
        (MINIMAL + "train: {learning_rate: 1e400}", ("train.learning_rate", "finite", "inf")),
        (MINIMAL + "train: {learning_rate: -1e-3}", ("train.learning_rate", "greater than 0", "-0.001")),
        (MINIMAL + "train: {warmup_epochs: -.inf}", ("train.warmup_epochs", "finite", "-inf")),
        (MINIMAL + "train: {momentum: 1}", ("train.momentum", "less than 1", "1")),
        (MINIMAL + "train: {augment: {mixup_alpha: -1}}", ("train.augment.mixup_alpha", "equal to 0", "-1")),
        (MINIMAL + "search: {num_trials: 0}", ("search.num_trials", "greater than or equal to 1", "0")),
        (MINIMAL + "search: {suggestion_batch: 0}", ("search.suggestion_batch", "greater than or equal to 1", "0")),
        (MINIMAL + "resources: {gpus_per_trial: .nan}", ("resources.gpus_per_trial", "finite", "nan")),
        (MINIMAL + "resources: {gpus_per_trial: -1}", ("resources.gpus_per_trial", "equal to 0", "-1")),
        (MINIMAL + "resources: {gpus_per_trial: 1.5}", ("gpus_per_trial", "whole or below 1", "1.5")),
        (MINIMAL + "resources: {gpus_per_trial: all}", ("resources.gpus_per_trial", "number", "'auto'", "all")),
        (MINIMAL + "resources: {max_concurrent_trials: 0}", ("resources.max_concurrent_trials", "equal to 1", "0")),
        (MINIMAL + "finalists: {max_finalists: -1}", ("finalists.max_finalists", "equal to 0", "-1")),
        (MINIMAL + "latency: {batch_sizes: []}", ("latency.batch_sizes", "at least 1", "[]")),
        (MINIMAL + "train: {mode: cuda-graph}", ("train.mode", "eager or compiled", "'cuda-graph'")),
        (MINIMAL + "latency: {max_seconds: .inf}", ("latency.max_seconds", "finite", "inf")),
        (MINIMAL + "committees: {resamples: 1}", ("committees.resamples", "equal to 100", "1")),
        (MINIMAL + "committees: {rules: [softmax, softmax]}", ("committees.rules", "distinct", "'softmax'")),
        (MINIMAL + "analysis: {taps: []}", ("analysis.taps", "at least 1", "[]")),
        (MINIMAL + "pruning: {thresholds: [0.3, 0.3]}", ("pruning.thresholds", "distinct", "0.3")),
        # seeds
        (MINIMAL + "seed: -1", ("seed", "greater than or equal to 0", "-1")),
        (MINIMAL + "seed: 1.0", ("seed", "integer", "1.0")),
        (MINIMAL + "seed: 4294967296", ("seed", "less than 4294967296", "4294967296")),
        (MINIMAL + "seed: 9223372036854775808", ("64 bits", "9223372036854775808", "line 3")),
        (MINIMAL + "train: {seed: true}", ("train.seed", "integer", "True")),
        (MINIMAL + "train: {seed: 18446744073709551616}", ("64 bits", "18446744073709551616", "line 3")),
        (MINIMAL + "data: {split_seed: -1}", ("data.split_seed", "greater than or equal to 0", "-1")),
        (MINIMAL + "analysis: {seed: 18446744073709551616}", ("64 bits", "18446744073709551616", "line 3")),
        (MINIMAL + "pruning: {seeds: [18446744073709551616]}", ("64 bits", "18446744073709551616", "line 3")),
        (MINIMAL + "finalists: {seeds: [4294967296]}", ("finalists.seeds.0", "less than 4294967296", "4294967296")),
        (MINIMAL + "finalists: {seeds: [-1]}", ("finalists.seeds.0", "greater than or equal to 0", "-1")),
        (MINIMAL + "finalists: {seeds: []}", ("finalists.seeds", "at least 1", "[]")),
        (MINIMAL + "finalists: {seeds: [1, 1]}", ("finalists.seeds", "distinct", "[1, 1]")),
        (MINIMAL + "train: {learning_rate: .nan}", ("train.learning_rate", "finite", "nan")),
        (MINIMAL + "train: {epochs: 0}", ("train.epochs", "greater than or equal to 1", "0")),
        (MINIMAL + "search: {num_trials: -3}", ("search.num_trials", "greater than or equal to 1", "-3")),
        (MINIMAL + "finalists: {epochs: 1}\ntrain: {warmup_epochs: 2}", ("finalists.epochs", "warmup_epochs", "1")),
        (HEAD + "space: {num_heads: [1, 3]}", ("space.num_heads", "must divide embed_dim", "3")),
        (HEAD + "space: {num_conv_blocks: {low: 0, high: 8}}", ("space.num_conv_blocks", "<= depth", "8")),
        (MINIMAL + "finalists: {epochs: 0}", ("finalists.epochs", "greater than or equal to 1", "0")),
        (MINIMAL + "latency: {max_seconds: 0.0}", ("latency.max_seconds", "greater than 0", "0.0")),
        (MINIMAL + "latency: {batch_sizes: [0]}", ("latency.batch_sizes.0", "greater than or equal to 1", "0")),
        (MINIMAL + "data: {val_fraction: 1.5}", ("data.val_fraction", "less than 1", "1.5")),
        (MINIMAL + "train: {epochs: 2, warmup_epochs: 3}", ("warmup_epochs <= epochs", "3", "2")),
        # architecture and space
        (MINIMAL + "model: {num_heads: 5}", ("num_heads", "divide", "5", "256")),
        (MINIMAL + "model: {depth: 2, num_conv_blocks: 3}", ("num_conv_blocks <= depth", "3", "2")),
        (MINIMAL + "model: {num_classes: 10}", ("num_classes", "follows from the data", "10")),
        ("name: a\nspace: {num_heads: [0, 1]}", ("space.num_heads", "greater than or equal to 1", "0")),
        ("name: a\nspace: {num_heads: [3, 5]}", ("num_heads must divide embed_dim", "3", "256")),
        ("name: a\nspace: {heads: [1]}", ("space", "num_heads", "'heads'")),
        ("name: a\nspace: {}", ("space", "at least 1", "{}")),
        (
            "name: a\nspace: {batch_size: {low: 1, high: 300000}}",
            ("space", "at most 200,000", "300,000"),
        ),
        # objectives and search
        (MINIMAL + "objectives: []", ("objectives", "at least 1", "[]")),
        (MINIMAL + "objectives: [val_accuracy]", ("objectives.0", "mapping", "'val_accuracy'")),
        (MINIMAL + "objectives: [{metric: params}]", ("objectives.0.direction", "required")),
        (
            MINIMAL + "objectives: [{metric: test_accuracy, direction: maximize}]",
            ("objectives.0.metric", "'val_accuracy'", "'test_accuracy'"),
        ),
        (MINIMAL + "search: {sampler: bayes}", ("search.sampler", "'tpe'", "'bayes'")),
        (
            MINIMAL + "search: {points_to_evaluate: [{heads: 1}]}",
            ("search.points_to_evaluate", "'num_heads'", "['heads']"),
        ),
        (
            MINIMAL + "search: {points_to_evaluate: [{num_heads: 1, depth: 2}]}",
            ("search.points_to_evaluate", "exactly", "['num_heads']", "['depth', 'num_heads']"),
        ),
        (
            MINIMAL + "search: {points_to_evaluate: [{num_heads: null}]}",
            ("search.points_to_evaluate.0.num_heads", "number, a word, true or false", "null"),
        ),
        (MINIMAL + "finalists: {include: [{num_heads: 4}]}", ("finalists.include", "in the space", "4")),
        (MINIMAL + "finalists: {include: [{num_heads: '1'}]}", ("finalists.include", "in the space", "'1'")),
        (MINIMAL + "finalists: {include: [{depth: 1}]}", ("finalists.include", "'num_heads'", "['depth']")),
        (MINIMAL + "finalists: {include: [{}]}", ("finalists.include", "'num_heads'", "[]")),
        (
            MINIMAL + "finalists: {include: [{num_heads: 1}, {num_heads: 2}]}\nsearch: {num_trials: 1}",
            ("search.num_trials", "finalists.include", "1", "2"),
        ),
        (
            MINIMAL + "objectives: [{metric: speed, direction: minimize}]",
            ("objectives.0.metric", "'latency_ms'", "speed"),
        ),
        (MINIMAL + "objectives: [{metric: params, direction: down}]", ("objectives.0.direction", "'minimize'", "down")),
        (
            MINIMAL + "objectives: [{metric: params, direction: minimize}, {metric: params, direction: maximize}]",
            ("objectives", "once", "params"),
        ),
        (
            "name: a\nspace: {learning_rate: {low: 1e-4, high: 1e-2}}\nsearch: {sampler: grid}",
            ("space.learning_rate", "list", "grid", "0.0001"),
        ),
        (
            "name: a\nspace: {num_heads: [1, 2], depth: [1, 2]}\nsearch: {points_to_evaluate: [{depth: 1}]}",
            ("search.points_to_evaluate", "'num_heads'", "['depth']"),
        ),
        (
            MINIMAL + "search: {points_to_evaluate: [{num_heads: 4}]}",
            ("search.points_to_evaluate", "in the space", "4"),
        ),
        # names of version 0.1
        (
            MINIMAL + "search: {wave_size: 4}",
            ("search.wave_size", "called search.suggestion_batch since version 0.2"),
        ),
        (
            MINIMAL + "search: {warm_start: [{num_heads: 1}]}",
            ("search.warm_start", "called search.points_to_evaluate since version 0.2"),
        ),
        (
            MINIMAL + "resources: {seeds_together: 2}",
            ("resources.seeds_together", "called resources.max_stacked_seeds since version 0.2"),
        ),
        (
            MINIMAL + "finalists: {resources: {seeds_together: 2}}",
            ("finalists.resources.seeds_together", "called finalists.resources.max_stacked_seeds since version 0.2"),
        ),
        (MINIMAL + "model: {attention: materialised}", ("model.attention", "'materialized'", "'materialised'")),
        # data
        (MINIMAL + "data: {name: mnist}", ("data.name", "'digits'", "'mnist'")),
        (MINIMAL + "data: {name: parquet}", ("data.path", "folder", "parquet")),
        (MINIMAL + "data: {name: parquet, path: missing}", ("data.path", "missing")),
        (MINIMAL + "data: {name: imagefolder, path: missing}", ("data.path", "missing")),
        (MINIMAL + "data: {img_size: 2}", ("data.img_size", "greater than or equal to 4", "2")),
        (MINIMAL + "data: {max_train_images: 5}", ("data.max_train_images", "5", "10")),
        (MINIMAL + "train: {batch_size: 100000}", ("train.batch_size", "at most", "100000")),
        ("name: a\nspace: {batch_size: [64, 100000]}", ("space.batch_size", "at most", "100000")),
        (
            MINIMAL + "train: {batch_size: 33}\nresources: {workers_per_trial: 2, cpus_per_trial: 2}",
            ("train.batch_size", "multiple of the 2 workers", "33"),
        ),
        (
            MINIMAL + "resources: {workers_per_trial: 2, cpus_per_trial: 3}",
            ("cpus_per_trial", "multiple of workers_per_trial", "3"),
        ),
    ],
)
def test_a_sweep_that_cannot_run(refused, tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    (tmp_path / "space.yaml").write_text(text)
    assert_words(refused("run", "space.yaml", "--out", "out"), words)


@pytest.mark.parametrize(
    ("dimension", "words"),
    [
        ("num_heads: 4", ("space.num_heads", "list of choices", "4")),
        ("conv_kind: conv3x3", ("space.conv_kind", "list of choices", "'conv3x3'")),
        ("num_heads: []", ("space.num_heads", "at least 1", "[]")),
        ("num_heads: [1, 1]", ("space.num_heads", "once", "[1, 1]")),
        ("learning_rate: [1, 1.0]", ("space.learning_rate", "once", "[1, 1.0]")),
        ("num_heads: [1, 2], num_heads: [4]", ("duplicate key", "num_heads", "line 2, column 28")),
        ("num_heads: [1, '2']", ("space.num_heads", "integer", "'2'")),
        ("num_heads: [1, 2.0]", ("space.num_heads", "integer", "2.0")),
        ("num_heads: [1, true]", ("space.num_heads", "integer", "True")),
        ("num_heads: [1, null]", ("space.num_heads.1", "number, a word, true or false", "null")),
        ("num_heads: [[1]]", ("space.num_heads.0", "number, a word, true or false", "[1]")),
        ("learning_rate: [.nan]", ("space.learning_rate.0", "finite", "nan")),
        ("learning_rate: ['1e-3']", ("space.learning_rate", "number", "'1e-3'")),
        ("conv_kind: [conv3x3, 3]", ("space.conv_kind", "'residual'", "3")),
        ("conv_kind: [on, off]", ("space.conv_kind", "'residual'", "'on'")),
        ("num_heads: {}", ("space.num_heads.low", "required")),
        ("num_heads: {low: 1}", ("space.num_heads.high", "required")),
        ("num_heads: {low: 4, high: 1}", ("space.num_heads", "low <= high", "low=4, high=1")),
        ("num_heads: {low: a, high: b}", ("space.num_heads.low", "integer", "'a'")),
        ("num_heads: {low: 1, high: 4, step: 0}", ("space.num_heads.step", "greater than or equal to 1", "0")),
        ("num_heads: {low: 1, high: 4, step: -1}", ("space.num_heads.step", "greater than or equal to 1", "-1")),
        ("num_heads: {low: 1, high: 4, stop: 2}", ("space.num_heads.stop", "unknown key")),
        ("num_heads: {low: 1.0, high: 4.0}", ("space.num_heads", "integer", "1.0")),
        ("num_heads: {low: 1, high: 9223372036854775807}", ("space", "at most 200,000", "9,223,372,036,854,775,807")),
        ("learning_rate: {low: 0.1, high: 0.01}", ("space.learning_rate", "low < high", "low=0.1, high=0.01")),
        ("learning_rate: {low: 0.0, high: 0.1, log: true}", ("space.learning_rate", "low > 0", "low=0.0")),
        ("learning_rate: {low: -0.1, high: 0.1, log: true}", ("space.learning_rate", "low > 0", "low=-0.1")),
        ("learning_rate: {low: 1e-4, high: .inf}", ("space.learning_rate.high", "finite", "inf")),
        ("learning_rate: {low: 1e-4, high: 1e-2, step: 1e-3}", ("space.learning_rate.step", "unknown key")),
        ("learning_rate: {low: 1e-4, high: 1e-2, log: 1}", ("space.learning_rate.log", "boolean", "1")),
        ("momentum: {low: 0.5, high: 1.0}", ("space.momentum", "less than 1", "1.0")),
        ("epochs: [1, 2]", ("space", "batch_size", "'epochs'")),
        ("num_classes: [2, 3]", ("space", "num_heads", "'num_classes'")),
        ("seed: [0, 1]", ("space", "learning_rate", "'seed'")),
        ("train: {epochs: [1]}", ("space.train.low", "required")),
        ("1: [1]", ("space.1", "string", "1")),
        ("'': [1]", ("space", "num_heads", "''")),
        ("kernel_size: {low: 2, high: 4}", ("space.kernel_size", "odd", "2")),
        ("embed_dim: [255], num_heads: [2]", ("space", "num_heads must divide embed_dim", "2", "255")),
        ("depth: [1], num_conv_blocks: [2]", ("space", "num_conv_blocks <= depth", "2", "1")),
        ("warmup_epochs: {low: 0.0, high: 20.0}", ("space", "warmup_epochs <= epochs", "20.0", "10")),
    ],
)
def test_a_space_that_cannot_be_searched(refused, tmp_path: Path, dimension: str, words: tuple[str, ...]) -> None:
    (tmp_path / "space.yaml").write_text(f"name: a\nspace: {{{dimension}}}")
    assert_words(refused("run", "space.yaml", "--out", "out"), words)


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "/tmp/x",
        "a/b",
        "a\\b",
        "",
        ".",
        "..",
        ".a",
        "-a",
        "a b",
        "a\n",
        "a\nb",
        "a\0",
        "\x1b[31m",
        "ä",
        "~",
        "x" * 65,
    ],
)
def test_a_name_that_is_no_folder(refused, tmp_path: Path, name: str) -> None:
    (tmp_path / "space.yaml").write_text(SPACE + f"name: {json.dumps(name)}")
    words = ("NUL", r"'a\x00'") if "\0" in name else ("name: ", "pattern", repr(name)[:50])
    assert_words(refused("run", "space.yaml"), words)


LAUGHS = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in pairwise("abcdefghi"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param(text, words, id=words[0] + f" {number}")
        for number, (text, words) in enumerate(
            [
                ("", ("must be a mapping",)),
                ("null", ("must be a mapping",)),
                ("- name: a", ("must be a mapping",)),
                ("name: [a", ("expected ',' or ']'", "line 1")),
                ("a: b: c", ("mapping values are not allowed here", "line 1")),
                (MINIMAL + "train:\n\tepochs: 1", (r"'\t'", "line 4")),
                (MINIMAL + "name: b", ("duplicate key", "name", "line 3")),
                (MINIMAL + "train: {augment: {translate: 1, translate: 2}}", ("duplicate key", "translate", "line 3")),
                (MINIMAL + "? {a: b}\n: c", ("unhashable key", "line 3")),
                # tags
                (MINIMAL + "train: !!python/object/apply:os.mkdir [x]", ("tags are not allowed", "os.mkdir", "line 3")),
                (MINIMAL + "train: !mine {epochs: 1}", ("tags are not allowed", "!mine", "line 3")),
                (MINIMAL + "train: {epochs: !!int x}", ("tags are not allowed", ":int", "line 3")),
                (MINIMAL + "train: {learning_rate: !!float x}", ("tags are not allowed", ":float", "line 3")),
                (MINIMAL + "data: {download: !!bool maybe}", ("tags are not allowed", ":bool", "line 3")),
                (MINIMAL + "data: {path: !!binary aGk=}", ("tags are not allowed", ":binary", "line 3")),
                (MINIMAL + "data: {path: !!timestamp x}", ("tags are not allowed", ":timestamp", "line 3")),
                (MINIMAL + "train: !!set {epochs}", ("tags are not allowed", ":set", "line 3")),
                (MINIMAL + "train: !!omap [epochs: 1]", ("tags are not allowed", ":omap", "line 3")),
                (MINIMAL + "!!binary aGk=: 1", ("tags are not allowed", ":binary", "line 3")),
                # aliases
                ("name: a\nspace: {num_heads: &h [1], depth: *h}", ("aliases are not allowed", "*h", "line 2")),
                (LAUGHS + MINIMAL, ("aliases are not allowed", "*a", "line 2")),
                ("train: &t\n  augment: *t\n" + MINIMAL, ("aliases are not allowed", "*t", "line 2")),
                ("x: &x {epochs: 1}\ntrain:\n  <<: *x\n" + MINIMAL, ("aliases are not allowed", "*x", "line 3")),
                # documents
                (MINIMAL + "---\n" + MINIMAL, ("only one document", "line 3")),
                ("---\n---\n" + MINIMAL, ("only one document", "line 2")),
                ("%YAML 1.1\n---\n" + MINIMAL, ("directives are not allowed", "line 2")),
                ("%TAG ! tag:a,2000:\n---\n" + MINIMAL, ("directives are not allowed", "line 2")),
                # characters
                (b"name: \xff", ("not UTF-8", "space.yaml")),
                (MINIMAL.encode("utf-16"), ("not UTF-8", "space.yaml")),
                (MINIMAL + "data: {path: a\0b}", ("special characters", r"'\x00'", "line 3")),
                (MINIMAL + 'data: {name: imagefolder, path: "a\\0b"}', ("NUL", r"'a\x00b'", "line 3")),
                (MINIMAL + "data: {path: a\x1bb}", ("special characters", r"'\x1b'", "line 3")),
                # size
                ("[" * 10_000, ("at most 20 levels", "line 1")),
                ("{a: " * 10_000, ("at most 20 levels", "line 1")),
                ("- " * 10_000, ("at most 20 levels", "line 1")),
                ("? " * 10_000, ("at most 20 levels", "line 1")),
                (MINIMAL + "train: " + "[" * 10_000 + "]" * 10_000, ("at most 20 levels", "line 3")),
                (MINIMAL + "#" * 1_000_000, ("at most 1,000,000 bytes", "space.yaml")),
            ]
        )
    ],
)
def test_text_that_is_no_sweep(refused, tmp_path: Path, text: str | bytes, words: tuple[str, ...]) -> None:
    (tmp_path / "space.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert_words(refused("run", "space.yaml", "--out", "out"), ("space.yaml", *words))


def test_what_only_looks_like_a_mistake(tmp_path: Path) -> None:
    numbers = "{learning_rate: 1e-3, weight_decay: .5e-3, batch_size: 1_00, epochs: 0x10}"
    (tmp_path / "space.yaml").write_bytes(
        b"\xef\xbb\xbf---\r\n" + f"{MINIMAL}train: {numbers}\ndata: {{path: 2001-01-01}}\nseed: 4294967295".encode()
    )
    config = load_sweep_config(tmp_path / "space.yaml", ["data.image_column=off", "latency.threads=0o10"])
    assert config.train == TrainConfig(learning_rate=0.001, weight_decay=0.0005, batch_size=100, epochs=16)
    assert (config.data.path, config.data.image_column) == ("2001-01-01", "off")
    assert config.latency.threads == 8


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "gp", "random", "grid"])
def test_samplers_take_the_largest_seed(sampler: str) -> None:
    config = SweepConfig.model_validate(
        {"name": "a", "seed": 2**32 - 1, "space": {"num_heads": [1, 2]}, "search": {"sampler": sampler}}
    )
    space = SearchSpace(config.space, config.model, config.train)
    assert ProposalStudy(space, config.search, config.objectives, seed=config.seed).ask()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("run", "missing.yaml"), ("missing.yaml", "No such file")),
        (("run", "."), ("SPACE.yaml", "directory")),
        (("run",), ("SPACE.yaml", "Missing")),
        (("run", "ok.yaml", "--set", "train.epochs"), ("--set", "a.b=value", "'train.epochs'")),
        (("run", "ok.yaml", "--set", "train.epochs=0"), ("train.epochs", "0")),
        (("run", "ok.yaml", "--set", "name.x=0"), ("--set", "name.x=0", "single value")),
        (("run", "ok.yaml", "--set", "name.x=a\nb"), ("--set", "name.x=a b", "single value")),
        (("run", "ok.yaml", "--set", "space.num_heads.low=1"), ("--set", "num_heads", "single value")),
        (("run", "ok.yaml", "--set", ""), ("--set", "a.b=value", "''")),
        (("run", "ok.yaml", "--set", "=3"), ("--set", "a.b=value", "'=3'")),
        (("run", "ok.yaml", "--set", "train..epochs=3"), ("--set", "a.b=value", "'train..epochs=3'")),
        (("run", "ok.yaml", "--set", "train.=3"), ("--set", "a.b=value", "'train.=3'")),
        (("run", "ok.yaml", "--set", "x" * 5000), ("--set", "a.b=value", "'xxx")),
        (("run", "ok.yaml", "--set"), ("--set",)),
        (("run", "ok.yaml", "--set", "trian.epochs=3"), ("trian", "unknown key")),
        (("run", "ok.yaml", "--set", "train.epochs =3"), ("train.epochs", "unknown key")),
        (("run", "ok.yaml", "--set", "name=../x"), ("name", "pattern", "'../x'")),
        (("run", "ok.yaml", "--set", "space={}"), ("space", "at least 1", "{}")),
        (("run", "ok.yaml", "--set", "train="), ("train", "mapping", "null")),
        (("run", "ok.yaml", "--set", "train.epochs="), ("train.epochs", "integer", "null")),
        (("run", "ok.yaml", "--set", "train.epochs='3'"), ("train.epochs", "integer", "'3'")),
        (("run", "ok.yaml", "--set", "train.epochs=x=y"), ("train.epochs", "integer", "'x=y'")),
        (("run", "ok.yaml", "--set", "objectives.0.metric=params"), ("objectives", "list", "'params'")),
        (("run", "ok.yaml", "--set", "seed=4294967296"), ("seed", "less than 4294967296", "4294967296")),
        (("run", "ok.yaml", "--set", f"seed={'9' * 5000}"), ("--set seed=9999", "64 bits")),
        (("run", "ok.yaml", "--set", "train={epochs: 1, epochs: 2}"), ("--set train={", "duplicate key", "epochs")),
        (("run", "ok.yaml", "--set", "train.epochs=[&a 1, *a]"), ("--set train.epochs=", "aliases", "*a")),
        (("run", "ok.yaml", "--set", "train.epochs=!!int x"), ("--set train.epochs=", "tags", ":int")),
        (("run", "ok.yaml", "--set", "train.epochs=!x 3"), ("--set train.epochs=", "tags", "!x")),
        (("run", "ok.yaml", "--set", "train.epochs=1\n---\n2"), ("--set train.epochs=", "only one document")),
        (("run", "ok.yaml", "--set", "train.epochs=\t3"), ("--set train.epochs=", r"'\t'")),
        (("run", "ok.yaml", "--set", f"train.epochs={'[' * 10_000}"), ("--set train.epochs=[", "at most 20 levels")),
        (("run", "ok.yaml", "--address", "127.0.0.1:1"), ("--address", "host:port", "'127.0.0.1:1'")),
        (("run", "ok.yaml", "--address", "nonsense"), ("--address", "host:port", "'nonsense'")),
        (("run", "ok.yaml", "--out"), ("--out",)),
        (("run", "ok.yaml", "ok.yaml"), ("ok.yaml", "unexpected")),
        (("run", "ok.yaml", "--quiet=3"), ("--quiet",)),
        (("run", "a\nb.yaml"), ("a b.yaml", "No such file")),
        (("run", "x" * 300), ("SPACE.yaml", "too long")),
        (("validate",), ("SPACE.yaml", "Missing")),
        (("validate", "ok.yaml", "--set", "seed"), ("--set", "a.b=value", "'seed'")),
        (("validate", "ok.yaml", "--out", "out"), ("--out",)),
        (("train", "cct_2_3x2_32", "--out", "out", "--seed", "-1"), ("train.seed", "equal to 0", "-1")),
        (("train", "cct_2_3x2_32", "--out", "out", "--gpus", "nan"), ("gpus", "finite", "nan")),
        (("train", "cct_2_3x2_32", "--out", "out", "--set", "space.x=1"), ("space", "unknown key")),
        (("train", "cct_2_3x2_32", "--out", "out", "--set", "model=3"), ("model", "mapping", "3")),
        (("run", "ok.yaml", "--set", "train.epochs=[1"), ("--set", "train.epochs=[1")),
        (("run", "ok.yaml", "--out", "full"), ("--out", "new or empty", "full")),
        (("run", "ok.yaml", "--out", "ok.yaml"), ("--out", "new or empty", "ok.yaml")),
        (("run", "ok.yaml", "--speed", "9"), ("--speed",)),
        (("validate", "missing.yaml"), ("missing.yaml", "No such file")),
        (("sweep", "ok.yaml"), ("sweep",)),
        (("status", "missing"), ("RUN", "config.yaml", "missing")),
        (("status", "full"), ("RUN", "config.yaml", "full")),
        (("front", "full"), ("RUN", "config.yaml", "full")),
        (("train", "resnet", "--out", "out"), ("VARIANT", "cct_7_3x1_32", "'resnet'")),
        (("train", "cct_2_3x2_32"), ("--out",)),
        (("train", "cct_2_3x2_32", "--out", "full"), ("--out", "new or empty", "full")),
        (("train", "cct_2_3x2_32", "--out", "out", "--epochs", "0"), ("train.epochs", "0")),
        (("train", "cct_2_3x2_32", "--out", "out", "--epochs", "x"), ("--epochs", "'x'")),
        (("train", "cct_2_3x2_32", "--out", "out", "--data", "mnist"), ("data.name", "'digits'", "'mnist'")),
        (("train", "cct_2_3x2_32", "--out", "out", "--set", "train.epoch=1"), ("train.epoch", "unknown key")),
        (("train", "cct_2_3x2_32", "--out", "out", "--workers", "0"), ("workers", "0")),
        (("train", "cct_2_3x2_32", "--out", "out", "--workers", "3"), ("train.batch_size", "3 workers", "128")),
        (("latency", "resnet"), ("VARIANT", "cct_7_3x1_32", "'resnet'")),
        (("latency", "cct_2_3x2_32", "--batch-sizes", "1,x"), ("--batch-sizes", "whole numbers", "'1,x'")),
        (("latency", "cct_2_3x2_32", "--batch-sizes", ""), ("--batch-sizes", "whole numbers", "''")),
        (("latency", "cct_2_3x2_32", "--batch-sizes", "0"), ("batch_sizes", "greater than or equal to 1", "0")),
        (("latency", "cct_2_3x2_32", "--num-heads", "1,3"), ("num_heads", "divide", "3")),
        (("latency", "cct_2_3x2_32", "--num-conv-blocks", "9"), ("num_conv_blocks", "depth", "9")),
        (("latency", "cct_2_3x2_32", "--device", "tpu"), ("device", "'cuda'", "'tpu'")),
        (("latency", "cct_2_3x2_32", "--dtype", "fp8"), ("dtype", "'bf16'", "'fp8'")),
        (("latency", "cct_2_3x2_32", "--threads", "0"), ("threads", "0")),
        (("bench", "--variants", "resnet"), ("--variants", "cct_7_3x1_32", "'resnet'")),
        (("bench", "--batch-size", "0"), ("--batch-size", "at least 1", "0")),
        (("bench", "--repeats", "0"), ("--repeats", "at least 1", "0")),
        (("bench", "--device", "tpu"), ("--device", "auto, cpu or cuda", "'tpu'")),
        (("bench", "--out", "full/mine/x"), ("--out", "folder", "full/mine")),
    ],
)
def test_a_command_that_cannot_run(refused, tmp_path: Path, arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    (tmp_path / "ok.yaml").write_text(MINIMAL)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("precious")
    assert_words(refused(*arguments), words)


def test_a_training_run_has_its_folder_for_itself(refused, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    with owned(tmp_path / "one"):
        line = refused("train", "cct_2_3x2_32", "--data", "digits", "--out", "one")
    assert_words(line, ("one: in use by process", "one process at a time"))


def test_a_logger_whose_package_is_not_installed(refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "space.yaml").write_text(MINIMAL + "loggers: [tensorboard, mlflow]")
    monkeypatch.setitem(experiment_loggers._PACKAGES, "mlflow", "a_package_that_is_not_there")
    for command in (("run", "space.yaml", "--out", "out"), ("run", "space.yaml", "--dry-run")):
        assert_words(refused(*command), ("loggers: mlflow", "pip install 'lsmha-sweep[mlflow]'"))


def test_no_gpu(refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for command in (("latency", "cct_2_3x2_32"), ("bench",)):
        assert_words(refused(*command, "--device", "cuda"), ("--device", "cpu or auto", "'cuda'"))


@pytest.mark.parametrize("content", ["damaged file", "damaged image"])
def test_damaged_parquet(refused, tmp_path: Path, content: str) -> None:
    for split in ("train", "test"):
        file = tmp_path / f"{split}.parquet"
        if content == "damaged file":
            file.write_bytes(b"PAR1 no more")
        else:
            pq.write_table(pa.table({"image": [{"bytes": b"no image"}] * 4, "label": [0, 1, 0, 1]}), file)
    (tmp_path / "space.yaml").write_text(MINIMAL + "data: {name: parquet, path: .}")
    assert_words(refused("run", "space.yaml"), ("data.path", "cannot", ".parquet"))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"resources": {"cpus_per_trial": 9999}}, ("resources.cpus_per_trial", "at most the 8 CPU", "9999")),
        ({"resources": {"gpus_per_trial": 1.0}}, ("resources.gpus_per_trial", "at most the 0 GPU", "1")),
        (
            {"resources": {"cpus_per_trial": 6}},
            ("resources.workers_per_trial", "places for 0 worker(s) of 6 CPU(s)", "1"),
        ),
        (
            {"finalists": {"resources": {"cpus_per_trial": 16, "workers_per_trial": 2}}},
            ("finalists.resources.cpus_per_trial", "at most the 8 CPU", "16"),
        ),
        ({"latency": {"device": "cuda"}}, ("latency.device", "cpu or auto", "'cuda'")),
    ],
)
def test_more_than_the_cluster_has(settings: dict[str, Any], words: tuple[str, ...]) -> None:
    config = SweepConfig.model_validate({"name": "a", "space": {"num_heads": [1]}, **settings})
    with pytest.raises(UserError) as caught:
        check_capacity(config, Capacity(present=((4, 0), (4, 0))))
    assert_words(str(caught.value), words)


@pytest.mark.parametrize(
    ("nodes", "resources", "places"),
    [
        # Six CPUs in all, but each node has room for one worker of two, not for one and a half.
        (((3, 0), (3, 0)), {"cpus_per_trial": 6, "workers_per_trial": 3}, 2),
        # Eight CPUs on one node, a GPU on the other.
        (((8, 0), (4, 1)), {"cpus_per_trial": 8, "gpus_per_trial": 1.0}, 0),
    ],
)
def test_workers_must_fit_on_nodes(nodes: Any, resources: dict[str, Any], places: int) -> None:
    config = SweepConfig.model_validate({"name": "a", "space": {"num_heads": [1]}, "resources": resources})
    with pytest.raises(UserError, match=f"have places for {places} worker"):
        check_capacity(config, Capacity(present=nodes))


def test_trials_at_a_time() -> None:
    two_nodes = Capacity(present=((3, 0), (3, 1)))
    assert concurrent_trials(ResourcesConfig(cpus_per_trial=2), two_nodes) == 2
    assert concurrent_trials(ResourcesConfig(cpus_per_trial=1, gpus_per_trial=0.3), two_nodes) == 3
    assert concurrent_trials(ResourcesConfig(cpus_per_trial=2, workers_per_trial=2), two_nodes) == 3
    assert concurrent_trials(ResourcesConfig(max_concurrent_trials=4), two_nodes) == 4


def test_what_the_cluster_has_is_allowed() -> None:
    resources = {"cpus_per_trial": 8, "gpus_per_trial": 2, "workers_per_trial": 2}
    config = SweepConfig.model_validate({"name": "a", "space": {"num_heads": [1]}, "resources": resources})
    check_capacity(config, Capacity(present=((4, 1), (4, 1))))
