"""Data sets on the Hugging Face hub, read through its own client from a stand-in for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_server import hub
from huggingface_hub import HfFileSystem, constants
from png_images import png

from lsmha.config import DataConfig
from lsmha.data import load_dataset
from lsmha.errors import DataError
from orchestrator.errors import UserError
from orchestrator.run_folder.location import location


def write(folder: Path, *, offset: int) -> None:
    """Training and test images of two labels; the offset tells their levels apart from those of other folders."""
    folder.mkdir(parents=True)
    for number, split in enumerate(("train", "test")):
        labels = [0, 1] * 10
        levels = [100 * label + 2 * index + number + offset for index, label in enumerate(labels)]
        table = pa.table({"img": [{"bytes": png(level)} for level in levels], "label": labels})
        pq.write_table(table, folder / f"{split}-00000-of-00001.parquet")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the stand-in for the hub finds `REVISION/USER/NAME`."""
    HfFileSystem.clear_instance_cache()
    with hub(tmp_path) as address:
        # Read from HF_ENDPOINT when the client was imported.
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", address)
        yield tmp_path
    HfFileSystem.clear_instance_cache()


def load(path: str) -> tuple[int, int]:
    """Numbers of training and test images, without those to select on."""
    dataset = load_dataset(DataConfig(name="parquet", path=path, val_fraction=0.2))
    return len(dataset.train) + len(dataset.val), len(dataset.test)


@pytest.mark.parametrize("end", ["", "/", "/*.parquet", "/t*-00000-of-00001.parquet"])
def test_a_name_is_enough(root: Path, end: str) -> None:
    write(root / "main" / "someone" / "some", offset=0)
    assert load(f"hf://datasets/someone/some{end}") == (20, 20)


@pytest.mark.parametrize("revision", ["refs/convert/parquet", "refs%2Fconvert%2Fparquet", "v1.0"])
def test_a_revision(root: Path, revision: str) -> None:
    write(root / "main" / "someone" / "some", offset=0)
    write(root / revision.replace("%2F", "/").replace("/", "~") / "someone" / "some" / "plain", offset=1)
    assert load(f"hf://datasets/someone/some@{revision}") == (20, 20)
    assert load(f"hf://datasets/someone/some@{revision}/plain") == (20, 20)


def test_one_of_several_configurations_is_to_be_named(root: Path) -> None:
    for offset, name in enumerate(("large", "small")):
        write(root / "main" / "someone" / "some" / name, offset=offset)
    with pytest.raises(DataError, match=r"holds several data sets with a train split; name one of .*large.*, .*small"):
        load("hf://datasets/someone/some")
    assert load("hf://datasets/someone/some/small") == (20, 20)


@pytest.mark.parametrize("path", ["hf://datasets/someone/none", "hf://datasets/someone/some/none"])
def test_what_is_not_there(root: Path, path: str) -> None:
    write(root / "main" / "someone" / "some", offset=0)
    with pytest.raises(DataError, match=r"^data\.path") as refused:
        load(path)
    assert "\n" not in str(refused.value)


def test_a_hub_that_does_not_answer(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DataError, match=r"^data\.path: cannot read hf://datasets/someone/some") as refused:
        load("hf://datasets/someone/some")
    assert "\n" not in str(refused.value)


def test_runs_are_not_on_the_hub() -> None:
    with pytest.raises(UserError, match=r"^--out: must be on disk or in a bucket, but got 'hf://datasets/a/b'"):
        location("hf://datasets/a/b", field="--out")
