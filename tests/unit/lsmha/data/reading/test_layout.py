"""Which files are of which split, by names as they are found in the wild."""

from __future__ import annotations

from pathlib import Path

import pytest

from lsmha.data.reading.layout import Layout, find_splits, split_of
from lsmha.errors import DataError


def found(folder: Path, *names: str, path: str = "") -> Layout:
    for number, name in enumerate(names):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(str(number))
    return find_splits(str(folder / path), suffix=".parquet", kind="Parquet")


def names_of(layout: Layout) -> list[list[str]]:
    return [["/".join(file.parts) for file in files] for files in (layout.train, layout.test, layout.val)]


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train.parquet", "test.parquet"),
        ("data/train-00000-of-00001-abcdef.parquet", "data/test-00000-of-00001-123456.parquet"),
        ("default/train/0000.parquet", "default/test/0000.parquet"),
        ("plain_text/partial-train/0000.parquet", "plain_text/partial-test/0000.parquet"),
        ("train.parquet/part-00000-abc-c000.snappy.parquet", "test.parquet/part-00000-abc-c000.snappy.parquet"),
        ("split=train/0.parquet", "split=test/0.parquet"),
        ("datasets--x/snapshots/1111/data/train-0.parquet", "datasets--x/snapshots/1111/data/test-0.parquet"),
        ("Training/a.parquet", "Testing/a.parquet"),
        ("cats_trainset.parquet", "cats_testset.parquet"),
        ("mnist-train.parquet", "mnist-eval.parquet"),
        ("train/attested.parquet", "test/restrained.parquet"),
    ],
)
def test_layouts(tmp_path: Path, train: str, test: str) -> None:
    assert names_of(found(tmp_path, train, test)) == [[train], [test], []]


@pytest.mark.parametrize("name", ["val", "valid", "validation", "dev", "Validation-00000-of-00001"])
def test_names_of_validation(tmp_path: Path, name: str) -> None:
    layout = found(tmp_path, "train.parquet", f"{name}.parquet")
    assert names_of(layout)[1:] == [[], [f"{name}.parquet"]]


@pytest.mark.parametrize("name", ["values", "contest", "restrain", "trained", "devices", "testimony", "evaluate"])
def test_words_that_only_look_like_a_split(name: str) -> None:
    assert split_of([name]) is None


@pytest.mark.parametrize(
    "hidden",
    [
        "._train-0.parquet",
        ".cache/train-0.parquet",
        "_delta_log/train.parquet",
        "__MACOSX/._test.parquet",
        "_temporary/0/train.parquet",
    ],
)
def test_other_programs_notes_are_left_out(tmp_path: Path, hidden: str) -> None:
    assert names_of(found(tmp_path, "train.parquet", "test.parquet", hidden)) == [
        ["train.parquet"],
        ["test.parquet"],
        [],
    ]


@pytest.mark.parametrize(
    ("one", "other"), [("cfg_a", "cfg_b"), ("snapshots/1111/data", "snapshots/2222/data"), ("v1", "v1/clean")]
)
def test_several_data_sets_are_refused_by_name(tmp_path: Path, one: str, other: str) -> None:
    names = [f"{folder}/{split}.parquet" for folder in (one, other) for split in ("train", "test")]
    with pytest.raises(
        DataError, match=rf"holds several data sets with a train split; name one of .*{one}, .*{other}$"
    ):
        found(tmp_path, *names)
    assert names_of(find_splits(str(tmp_path / other), suffix=".parquet", kind="Parquet"))[0] == ["train.parquet"]


def test_a_test_split_of_another_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="several data sets with a test split"):
        found(tmp_path, "a/train.parquet", "a/test.parquet", "b/test.parquet")


@pytest.mark.parametrize(
    "names",
    [
        ("train-00000-of-00001.parquet", "old/../train-00000-of-00001 (1).parquet"),
        ("a-train-00000-of-00001.parquet", "b-train-00000-of-00001.parquet"),
        ("train/x/00000-of-00001.parquet", "train/y/00000-of-00001.parquet"),
    ],
)
def test_the_same_part_twice(tmp_path: Path, names: tuple[str, ...]) -> None:
    (tmp_path / "old").mkdir()
    with pytest.raises(DataError, match="are the same part of a split; keep one"):
        found(tmp_path, *names, "test.parquet")


def test_the_same_content_twice(tmp_path: Path) -> None:
    found(tmp_path, "train-a.parquet", "test.parquet")
    (tmp_path / "train-b.parquet").write_text("0")
    with pytest.raises(DataError, match=r"train-a\.parquet and .*train-b\.parquet have the same content"):
        found(tmp_path)
    (tmp_path / "train-b.parquet").unlink()
    (tmp_path / "train-b.parquet").symlink_to(tmp_path / "train-a.parquet")
    with pytest.raises(DataError, match="have the same content"):
        found(tmp_path)


def test_parts_that_are_missing(tmp_path: Path) -> None:
    names = ["train-00000-of-00003.parquet", "train-00002-of-00003.parquet", "test.parquet"]
    with pytest.raises(DataError, match="lacks 1 of 00003 parts, of which 00001 is the first"):
        found(tmp_path, *names)
    assert len(found(tmp_path, path="t*.parquet").train) == 2, "who gives a glob may want some of them"
    with pytest.raises(DataError, match="has parts of 00003 and of 00004"):
        found(tmp_path, *names, "train-00001-of-00004.parquet")


def test_a_series_that_claims_to_be_endless(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="lacks 99999999998 of 99999999999 parts"):
        found(tmp_path, "train-00000-of-99999999999.parquet", "test.parquet")


def test_globs(tmp_path: Path) -> None:
    names = ["a/train.parquet", "a/test.parquet", "b/train.parquet", "b/test.parquet"]
    assert names_of(found(tmp_path, *names, path="a/*.parquet")) == [["train.parquet"], ["test.parquet"], []]
    assert names_of(found(tmp_path, path="*/t*.parquet"))[0] == ["a/train.parquet", "b/train.parquet"]
    with pytest.raises(DataError, match="matches 1 Parquet files, but needs files named train"):
        found(tmp_path, path="a/test.parquet")


def test_home_of_nobody() -> None:
    with pytest.raises(DataError, match=r"data\.path must begin with a home folder that there is.* '~nosuchuser/x'"):
        find_splits("~nosuchuser/x", suffix=".parquet", kind="Parquet")
