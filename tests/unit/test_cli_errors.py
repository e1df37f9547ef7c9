"""What a user gets wrong: exit code 2, one line with the field, the value and what is allowed, nothing written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from orchestrator.cluster import Capacity, check_capacity, concurrent_trials
from orchestrator.errors import UserError
from orchestrator.sweep_config import ResourcesConfig, SweepConfig

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
        (MINIMAL + "name: b", ("duplicate key", "name", "line 3")),
        ("name: a\nspace: {num_heads: &h [1], depth: *h}", ("aliases are not allowed",)),
        ("", ("must be a mapping",)),
        ("- name: a", ("must be a mapping",)),
        # types
        (SPACE + "name: 3", ("name", "string", "3")),
        (MINIMAL + "seed: one", ("seed", "integer", "'one'")),
        (MINIMAL + "data: digits", ("data", "'digits'")),
        (MINIMAL + "data: {val_fraction: '0.1'}", ("data.val_fraction", "number", "'0.1'")),
        (MINIMAL + "model: {depth: 2.5}", ("model.depth", "integer", "2.5")),
        (MINIMAL + "train: {epochs: true}", ("train.epochs", "integer", "True")),
        (MINIMAL + "train: {augment: {flip: 1}}", ("train.augment.flip", "boolean", "1")),
        (MINIMAL + "search: {wave_size: x}", ("search.wave_size", "integer", "'x'")),
        (MINIMAL + "latency: {batch_sizes: 1}", ("latency.batch_sizes", "1")),
        (MINIMAL + "resources: {cpus_per_trial: 1.5}", ("resources.cpus_per_trial", "integer", "1.5")),
        (MINIMAL + "finalists: {seeds: [a]}", ("finalists.seeds.0", "integer", "'a'")),
        (MINIMAL + "objectives: val_accuracy", ("objectives", "'val_accuracy'")),
        ("name: a\nspace: [1]", ("space", "[1]")),
        # bounds
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
        # name
        (SPACE + "name: ../x", ("name", "pattern", "'../x'")),
        (SPACE + "name: /tmp/x", ("name", "pattern", "'/tmp/x'")),
        # objectives and search
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
            "name: a\nspace: {num_heads: [1, 2], depth: [1, 2]}\nsearch: {warm_start: [{depth: 1}]}",
            ("search.warm_start", "'num_heads'", "['depth']"),
        ),
        (MINIMAL + "search: {warm_start: [{num_heads: 4}]}", ("search.warm_start", "in the space", "4")),
        # data
        (MINIMAL + "data: {name: mnist}", ("data.name", "'digits'", "'mnist'")),
        (MINIMAL + "data: {name: parquet}", ("data.path", "folder", "parquet")),
        (MINIMAL + "data: {name: parquet, path: missing}", ("data.path", "missing")),
        (MINIMAL + "data: {name: imagefolder, path: missing}", ("data.path", "missing")),
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
    ("arguments", "words"),
    [
        (("run", "missing.yaml"), ("missing.yaml", "No such file")),
        (("run", "."), ("SPACE.yaml", "directory")),
        (("run",), ("SPACE.yaml", "Missing")),
        (("run", "ok.yaml", "--set", "train.epochs"), ("--set", "a.b=value", "'train.epochs'")),
        (("run", "ok.yaml", "--set", "train.epochs=0"), ("train.epochs", "0")),
        (("run", "ok.yaml", "--set", "name.x=0"), ("--set", "name.x=0", "single value")),
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
    ],
)
def test_a_command_that_cannot_run(refused, tmp_path: Path, arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    (tmp_path / "ok.yaml").write_text(MINIMAL)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("precious")
    assert_words(refused(*arguments), words)


def test_no_gpu(refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert_words(refused("latency", "cct_2_3x2_32", "--device", "cuda"), ("--device", "cpu or auto", "'cuda'"))


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
        check_capacity(config, Capacity(nodes=((4, 0), (4, 0))))
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
        check_capacity(config, Capacity(nodes=nodes))


def test_trials_at_a_time() -> None:
    two_nodes = Capacity(nodes=((3, 0), (3, 1)))
    assert concurrent_trials(ResourcesConfig(cpus_per_trial=2), two_nodes) == 2
    assert concurrent_trials(ResourcesConfig(cpus_per_trial=1, gpus_per_trial=0.3), two_nodes) == 3
    assert concurrent_trials(ResourcesConfig(cpus_per_trial=2, workers_per_trial=2), two_nodes) == 3
    assert concurrent_trials(ResourcesConfig(max_concurrent_trials=4), two_nodes) == 4


def test_what_the_cluster_has_is_allowed() -> None:
    resources = {"cpus_per_trial": 8, "gpus_per_trial": 2, "workers_per_trial": 2}
    config = SweepConfig.model_validate({"name": "a", "space": {"num_heads": [1]}, "resources": resources})
    check_capacity(config, Capacity(nodes=((4, 1), (4, 1))))
