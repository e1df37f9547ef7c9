"""What a user gets wrong with analyses, committees and pruning: one line, exit code 2, nothing written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from published_names import to_published_key
from tiny_data import tiny_model

from lsmha.config import DataConfig, TrainConfig
from lsmha.data import Dataset, LabeledImages, load_dataset
from lsmha.models import CCT
from lsmha.training.saved import save_logits, save_model
from orchestrator.config.sweep import SweepConfig
from orchestrator.run_folder.content_hash import content_hash
from orchestrator.run_folder.ledger import Ledger
from orchestrator.run_folder.records import Fingerprint, TrialRecord

CPU = torch.device("cpu")
Refused = Callable[..., str]


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset(DataConfig(name="digits"))


def network(**settings: Any) -> CCT:
    return CCT(tiny_model(**{"in_channels": 1, "num_classes": 10, **settings}))


def saved(folder: Path, dataset: Dataset, model: CCT | None = None) -> Path:
    save_model(model or network(), folder, dataset=dataset, train_config=TrainConfig())
    return folder


def run_of(folder: Path, *datasets: Dataset) -> Path:
    """A run with an untrained finalist for each data set."""
    config = SweepConfig.model_validate({"name": folder.name, "space": {"num_heads": [1, 2]}})
    ledger = Ledger.create(folder, config)
    ledger.begin_session(config, Fingerprint(data="d", recipe_version=1))
    for number, dataset in enumerate(datasets):
        record = TrialRecord(
            id=f"t{number:04d}-s0", trial=f"t{number:04d}", key=content_hash({"run": number}), status="completed",
            point={"num_heads": 1}, seed=0, params=1, macs=1, latency_ms=1.0, epochs=1, seconds=1.0, val_accuracy=0.5,
            test_accuracy=0.5,
        )  # fmt: skip
        ledger.add(record)
        model = network()
        saved(ledger.finalist_folder(record.id), dataset, model)
        for split in ("val", "test"):
            save_logits(model, ledger.finalist_folder(record.id), split, dataset=dataset, device=CPU)
    return folder


def other(dataset: Dataset) -> Dataset:
    """The same images but for the last test image."""
    test = LabeledImages(dataset.test.images[:-1], dataset.test.labels[:-1])
    return Dataset.from_splits(
        dataset.name, train=dataset.train, val=dataset.val, test=test, class_names=dataset.class_names
    )


def assert_words(line: str, *words: str) -> None:
    assert [word for word in words if word not in line] == [], line


def test_no_such_checkpoint(refused: Refused) -> None:
    assert_words(refused("analyze", "nowhere"), "RUN|CHECKPOINT", "must exist", "nowhere")


def test_a_folder_without_a_network(refused: Refused, tmp_path: Path) -> None:
    assert_words(refused("analyze", tmp_path), "RUN|CHECKPOINT", "config.json")


def test_weights_that_do_not_fit(refused: Refused, tmp_path: Path, digits: Dataset) -> None:
    folder = saved(tmp_path / "one", digits)
    config = json.loads((folder / "config.json").read_text())
    del config["checksum"]  # written by hand
    config["model"]["depth"] = 3
    (folder / "config.json").write_text(json.dumps(config))
    assert_words(refused("analyze", folder), "does not fit")


def test_weights_cut_short(refused: Refused, tmp_path: Path, digits: Dataset) -> None:
    folder = saved(tmp_path / "one", digits)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert_words(refused("analyze", folder), "one", "model.safetensors")


def test_broken_weights(refused: Refused, tmp_path: Path, digits: Dataset) -> None:
    model = network()
    with torch.no_grad():
        model.head.weight[0, 0] = float("nan")
    assert_words(refused("analyze", saved(tmp_path / "one", digits, model)), "finite", "head.weight")


def test_a_network_for_other_labels(refused: Refused, tmp_path: Path, digits: Dataset) -> None:
    folder = saved(tmp_path / "one", digits, network(num_classes=7))
    assert_words(refused("analyze", folder), "num_classes", "10", "7")


def test_another_head_count_than_ours(refused: Refused, tmp_path: Path, digits: Dataset) -> None:
    folder = saved(tmp_path / "one", digits)
    assert_words(refused("analyze", folder, "--num-heads", 4), "num_heads", "2", "4")


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """Weights as the published code names them, of a network for digits."""
    weights = network(positional_embedding="none").state_dict()
    torch.save({to_published_key(name): value for name, value in weights.items()}, tmp_path / "weights.pth")
    return tmp_path / "weights.pth"


def test_published_weights_need_a_head_count_that_divides(refused: Refused, published: Path) -> None:
    assert_words(refused("analyze", published, "--data", "digits"), "num_heads", "must be given")
    assert_words(refused("analyze", published, "--data", "digits", "--num-heads", 3), "num_heads", "divide", "3")
    assert_words(refused("analyze", published, "--num-heads", 2), "--data", "must name the data set")


def test_a_pickle_is_not_run(refused: Refused, tmp_path: Path) -> None:
    torch.save({"weights": print}, tmp_path / "evil.pth")
    refusal = refused("analyze", tmp_path / "evil.pth", "--data", "digits", "--num-heads", 2)
    assert_words(refusal, "must be weights", "print")


def test_labels_missing_from_the_test_set(
    refused: Refused, tmp_path: Path, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = digits.test.labels != 3
    test = LabeledImages(digits.test.images[keep], digits.test.labels[keep])
    fewer = Dataset.from_splits("digits", train=digits.train, val=digits.val, test=test, class_names=digits.class_names)
    monkeypatch.setattr("orchestrator.commands.analyze.load_data", lambda *_, **__: fewer)
    assert_words(refused("analyze", saved(tmp_path / "one", fewer)), "every label needs an image", "3")


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("analysis.threshold=2", ("analysis.threshold", "less than 1", "2")),
        ("analysis.readout.pooling=sequence", ("pooling", "mean or flatten", "sequence")),
        ("analysis.taps=[head]", ("analysis.taps", "'attn', 'mlp' or 'block'", "head")),
        ("analysis.nonsense=1", ("analysis.nonsense", "unknown key")),
    ],
)
def test_settings(refused: Refused, tmp_path: Path, digits: Dataset, setting: str, words: tuple[str, ...]) -> None:
    folder = saved(tmp_path / "one", digits)
    assert_words(refused("analyze", folder, "--set", setting), *words)


def test_options_of_a_checkpoint_with_a_run(refused: Refused, tmp_path: Path, digits: Dataset) -> None:
    run = run_of(tmp_path / "run", digits)
    assert_words(refused("analyze", run, "--num-heads", 4), "--num-heads", "only for a checkpoint", "4")


def test_a_run_without_finalists(refused: Refused, tmp_path: Path) -> None:
    run = run_of(tmp_path / "run")
    for command in ("analyze", "prune"):
        assert_words(refused(command, run), "RUN", "must have trained finalists")
    assert_words(refused("committee", run), "at least two trained finalists", "0")


def test_a_run_whose_data_have_changed(refused: Refused, tmp_path: Path, digits: Dataset) -> None:
    run = run_of(tmp_path / "run", other(digits))
    for command in ("analyze", "prune"):
        assert_words(refused(command, run), "data", "the run's own test set")


def test_committees_of_different_test_sets(refused: Refused, tmp_path: Path, digits: Dataset) -> None:
    first, second = run_of(tmp_path / "a", digits), run_of(tmp_path / "b", other(digits))
    line = refused("committee", first, second, "--out", tmp_path / "out")
    assert_words(line, "a/t0000-s0", "b/t0000-s0", "different test sets")
    assert_words(refused("committee", run_of(tmp_path / "c", digits, other(digits))), "different test sets")


def test_committees_of_several_runs_need_a_folder(refused: Refused, tmp_path: Path, digits: Dataset) -> None:
    first, second = run_of(tmp_path / "a", digits), run_of(tmp_path / "b", digits)
    assert_words(refused("committee", first, second), "--out", "must name a folder")
    assert_words(refused("committee", first, first, "--out", "x"), "each run may be named once")


def test_missing_and_damaged_logits(refused: Refused, tmp_path: Path, digits: Dataset) -> None:
    run = run_of(tmp_path / "run", digits, digits)
    logits = run / "finalists" / "t0001-s0" / "test_logits.safetensors"
    logits.write_bytes(logits.read_bytes()[:-50])
    assert_words(refused("committee", run), "t0001-s0", "cannot be read", "does not hold logits")
    logits.unlink()
    assert_words(refused("committee", run), "t0001-s0", "cannot be read")


def test_settings_that_would_change_the_run(refused: Refused, tmp_path: Path, digits: Dataset) -> None:
    run = run_of(tmp_path / "run", digits)
    for setting in ("data.max_train_images=100", "train.epochs=3"):
        assert_words(refused("analyze", run, "--set", setting), "--set", "analysis, pruning and data.path", setting)
    checkpoint = run / "finalists" / "t0000-s0"
    assert_words(refused("analyze", checkpoint, "--set", "analyses.threshold=0.5"), "--set", "'analyses'")


def test_a_checkpoint_of_another_split(refused: Refused, tmp_path: Path, digits: Dataset) -> None:
    folder = saved(tmp_path / "one", digits)
    line = refused("analyze", folder, "--set", "data.split_seed=1")
    assert_words(line, "data", "the test set that the network was trained beside", "data.split_seed")


def test_read_outs_without_enough_images(refused: Refused, tmp_path: Path, digits: Dataset) -> None:
    folder = saved(tmp_path / "one", digits)
    setting = "analysis.readout={solver: sgd, batch_size: 100000}"
    assert_words(refused("analyze", folder, "--set", setting), "analysis", "readout.batch_size", "100000")
    assert_words(
        refused("analyze", folder, "--set", "analysis.readout.max_train_images=9"), "max_train_images", "10", "9"
    )


def test_results_have_nowhere_to_go(refused: Refused, tmp_path: Path, digits: Dataset) -> None:
    folder = saved(tmp_path / "one", digits)
    (tmp_path / "file").write_text("taken")
    assert_words(refused("analyze", folder, "--out", tmp_path / "file"), "--out", "folder", "file")


def test_an_unknown_finalist(refused: Refused, tmp_path: Path, digits: Dataset) -> None:
    run = run_of(tmp_path / "run", digits)
    assert_words(refused("prune", run, "--finalist", "t0009-s0"), "--finalist", "t0000-s0", "t0009-s0")
