"""What `run` leaves behind when the sweep itself breaks, and what it refuses before it begins."""

from __future__ import annotations

import errno
import json
from contextlib import nullcontext
from pathlib import Path

import pytest
from png_images import png
from repository import ROOT
from snapshots import snapshot

from lsmha.provenance import versions
from orchestrator.cluster.capacity import Capacity
from orchestrator.cluster.connect import ClusterChoice
from orchestrator.commands import preflight, run, session
from orchestrator.config.yaml import load_sweep_config
from orchestrator.errors import StorageError, UserError
from orchestrator.run_folder.ledger import Ledger, load_run_config
from orchestrator.run_folder.ownership import has_owner, owned
from orchestrator.run_folder.status_file import describe_stage
from orchestrator.terminal import QUIET

QUICKSTART = ROOT / "search_spaces" / "quickstart.yaml"


@pytest.fixture(autouse=True)
def _cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "connect", lambda *_, **__: nullcontext(Capacity(((2, 0.0),))))
    monkeypatch.setattr(session, "exit_on_cluster_loss", lambda *_, **__: nullcontext())
    monkeypatch.setattr(session, "check_shared", lambda _: None)


def break_sweep(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def broken_sweep(*_: object) -> None:
        raise error

    monkeypatch.setattr(run, "Sweep", broken_sweep)


def start(folder: Path, *overrides: str) -> int:
    config = load_sweep_config(QUICKSTART, list(overrides))
    return run.run_sweep(config, folder, QUIET, ClusterChoice())


def test_a_crash_leaves_a_readable_folder_that_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    break_sweep(monkeypatch, RuntimeError("the cluster went away"))
    folder = tmp_path / "run"
    for _ in range(2):  # the second one goes on with the first
        with pytest.raises(RuntimeError, match="the cluster went away"):
            start(folder)
        assert describe_stage(folder) == "crashed"
        assert Ledger.load(folder).trials == []
        assert (folder / "trials.parquet").is_file()
        assert (folder / "study.journal").is_file()
        summary = json.loads((folder / "summary.json").read_text())
        assert summary["complete"] is False
        assert summary["dataset"]["name"] == "digits"
        assert summary["versions"] == versions()
        assert {"hardware", "git_revision", "wall_seconds"} <= set(summary)
        assert not has_owner(folder)


def test_a_run_finds_its_data_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    break_sweep(monkeypatch, RuntimeError("the cluster went away"))
    images = tmp_path / "here" / "images"
    for number in range(40):
        of_label = images / ("train" if number < 30 else "test") / f"label{number % 2}"
        of_label.mkdir(parents=True, exist_ok=True)
        (of_label / f"{number}.png").write_bytes(png(number))
    (tmp_path / "elsewhere").mkdir()
    folder = tmp_path / "run"
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(RuntimeError, match="the cluster went away"):
        start(folder, "data.name=imagefolder", "data.path=images", "data.img_size=8", "train.batch_size=8")
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(RuntimeError, match="the cluster went away"):
        run.run_sweep(load_run_config(folder), folder, QUIET, ClusterChoice())
    assert load_run_config(folder).data.path == str(images)


def test_broken_storage_is_one_line_and_nothing_more_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_sweep(monkeypatch, OSError(errno.ENOSPC, "No space left on device", "/x"))
    folder = tmp_path / "run"
    with pytest.raises(StorageError, match=f"^/x: No space left on device; .* `lsmha-sweep resume {folder}` goes on$"):
        start(folder)
    assert list(folder.glob("*.parquet")) == []
    assert Ledger.load(folder).trials == []
    assert not has_owner(folder)


def test_what_an_existing_run_cannot_become_is_refused_without_a_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_sweep(monkeypatch, RuntimeError("the cluster went away"))
    folder = tmp_path / "run"
    with pytest.raises(RuntimeError):
        start(folder)
    monkeypatch.setattr(session, "connect", lambda *_, **__: pytest.fail("Ray was started"))
    before = snapshot(tmp_path)
    with pytest.raises(UserError, match=r"train\.epochs: must be \d+, as in the run, but got 99"):
        start(folder, "train.epochs=99")
    monkeypatch.setattr(preflight, "RECIPE_VERSION", preflight.RECIPE_VERSION + 1)
    with pytest.raises(UserError, match="their results do not mix"):
        start(folder)
    assert snapshot(tmp_path) == before
    with owned(folder):
        before = snapshot(tmp_path)
        with pytest.raises(UserError, match="in use by process"):
            start(folder)
        assert snapshot(tmp_path) == before


def test_a_folder_of_something_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "connect", lambda *_, **__: pytest.fail("Ray was started"))
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(UserError, match="--out"):
        start(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
