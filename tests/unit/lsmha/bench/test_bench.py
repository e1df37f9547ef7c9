"""Comparisons of speed: repeats, the loops that are compared, and the report of what was found."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from lsmha.bench.baselines import vit_pytorch_cct
from lsmha.bench.loops import LoopName, LsmhaLoop, PlainLoop, build_loop
from lsmha.bench.random_data import random_dataset
from lsmha.bench.repeats import Spread, interleaved, ratios
from lsmha.bench.report import Report, Table
from lsmha.config import ModelConfig, TrainConfig
from lsmha.errors import MissingBaselineError

TINY = ModelConfig(img_size=8, num_classes=3, embed_dim=16, depth=2, num_heads=4)
RECIPE = TrainConfig(batch_size=4)
CPU = torch.device("cpu")


def test_ways_take_turns() -> None:
    calls: list[str] = []
    results = interleaved(
        {name: lambda name=name: calls.append(name) or float(len(calls)) for name in "ab"},  # type: ignore[misc]
        3,
        on_repeat=lambda repeat, name: calls.append(f"{repeat}{name}"),
    )
    assert calls == ["0a", "a", "0b", "b", "1a", "a", "1b", "b", "2a", "a", "2b", "b"]
    assert results == {"a": [2.0, 6.0, 10.0], "b": [4.0, 8.0, 12.0]}


def test_a_ratio_is_of_one_turn() -> None:
    # Over the medians it would be 10 / 4.
    assert ratios([2.0, 10.0, 30.0], [1.0, 4.0, 60.0]) == Spread(median=2.0, low=0.5, high=2.5, n=3)
    assert ratios([2.0, 10.0, 30.0], [1.0, 4.0, 60.0]).format(".1f") == "2.0 (0.5 to 2.5)"
    with pytest.raises(ValueError, match="zip"):
        ratios([1.0], [1.0, 2.0])


@pytest.mark.parametrize("settings", [{}, {"attn_drop": 0.0, "drop_path": 0.0}, {"num_tokenizer_convs": 2}])
def test_both_loops_train_the_same_network(settings: dict[str, float]) -> None:
    model = TINY.model_copy(update=settings)
    loops = [build_loop(name, model, RECIPE, steps=2, device=CPU) for name in ("lsmha", "vit-pytorch")]
    ours, theirs = loops
    assert isinstance(ours, LsmhaLoop)
    assert isinstance(theirs, PlainLoop)
    assert ours.num_params == theirs.num_params > 0
    for loop in loops:
        assert loop.run() > 0


@pytest.mark.parametrize("name", ["vit-pytorch", "timm, resident"])
def test_loops_of_others_learn(name: LoopName) -> None:
    loop = build_loop(name, TINY, TrainConfig(batch_size=8, learning_rate=3e-3), steps=1, device=CPU)
    assert isinstance(loop, PlainLoop)
    network = loop._network
    ((images, labels),) = loop._batches

    def loss() -> float:
        with torch.no_grad():
            return float(torch.nn.functional.cross_entropy(network.eval()(images), labels))

    before = loss()
    network.train()
    for _ in range(60):
        loop.run()
    assert loss() < before / 2


def test_dropout_of_the_peer_is_that_of_the_configuration() -> None:
    network = vit_pytorch_cct(TINY.model_copy(update={"attn_drop": 0.25, "drop_path": 0.0}))
    assert [block.self_attn.attn_drop.p for block in network.classifier.blocks] == [0.25, 0.25]  # type: ignore[union-attr]
    assert [block.drop_path.drop_prob for block in network.classifier.blocks] == [0.0, 0.0]  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="num_conv_blocks must be 0"):
        vit_pytorch_cct(TINY.model_copy(update={"num_conv_blocks": 1}))


def test_a_missing_peer_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "vit_pytorch.cct", None)
    with pytest.raises(MissingBaselineError, match="pip install vit-pytorch"):
        vit_pytorch_cct(TINY)


def test_random_images_have_the_shape_asked_for() -> None:
    dataset = random_dataset(train=5, val=2, test=3, num_classes=2, img_size=6, in_channels=1)
    assert dataset.train.images.shape == (5, 1, 6, 6)
    assert dataset.train.labels.tolist() == [0, 1, 0, 1, 0]
    assert [len(dataset.val), len(dataset.test), dataset.num_classes] == [2, 3, 2]
    assert not torch.equal(dataset.val.images, dataset.test.images[:2])


@dataclass(frozen=True)
class _Found:
    name: str
    ratio: Spread


@pytest.mark.parametrize(("stem", "name"), [("race", "race"), ("race.json", "race"), ("race-0.5", "race-0.5")])
def test_a_report_is_for_readers_and_programs(stem: str, name: str, tmp_path: Path) -> None:
    found = _Found("fast", Spread.of([1.0, 3.0, 2.0]))
    report = Report(
        title="A race",
        protocol="They ran.",
        command="run them",
        tables=[Table(["name", "ratio"], [["fast", found.ratio.format(".1f")]])],
        results={"found": [found]},
    )
    report.write(tmp_path / stem)
    content = json.loads((tmp_path / f"{name}.json").read_text())
    assert content["results"] == {
        "found": [{"name": "fast", "ratio": {"median": 2.0, "low": 1.0, "high": 3.0, "n": 3}}]
    }
    installed = version("torch")
    assert content["versions"]["torch"] == installed
    lines = (tmp_path / f"{name}.md").read_text().splitlines()
    assert lines[0] == "# A race"
    assert lines[-3:] == ["| name | ratio |", "| --- | --- |", "| fast | 2.0 (1.0 to 3.0) |"]
    assert any(f"torch {installed}" in line for line in lines)
