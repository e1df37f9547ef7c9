"""Tar files in the form of WebDataset."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lsmha.config import DataConfig
from lsmha.data import Dataset, load_dataset
from lsmha.errors import DataError


def png(level: int, mark: int) -> bytes:
    image = Image.new("RGB", (8, 8), (level, 0, 0))
    image.putpixel((7, 7), (level, mark, 0))
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()


def write(path: Path, members: list[tuple[str, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def samples(labels: list[Any], *, mark: int, kind: str = "cls", image: str = "png") -> list[tuple[str, bytes]]:
    members = []
    for number, label in enumerate(labels):
        text = json.dumps(label) if kind == "json" else str(label)
        members += [(f"a/{number:04}.{image}", png(20 * number, mark)), (f"a/{number:04}.{kind}", text.encode())]
    return members


def load(folder: Path, **settings: Any) -> Dataset:
    return load_dataset(DataConfig(name="webdataset", path=str(folder), val_fraction=0.2, **settings))


@pytest.mark.parametrize("names", [("train-{0:06}.tar", "test-000000.tar"), ("train/{0:04}.tar", "val/0000.tar")])
@pytest.mark.parametrize("kind", ["cls", "label", "txt", "CLS"])
def test_samples(tmp_path: Path, names: tuple[str, str], kind: str) -> None:
    for number in range(2):
        write(tmp_path / names[0].format(number), samples([1, 0, 1, 0], mark=number + 1, kind=kind))
    write(tmp_path / names[1], samples([0, 1, 1], mark=9, kind=kind))
    dataset = load(tmp_path)
    assert [len(dataset.train) + len(dataset.val), len(dataset.test)] == [8, 3]
    assert dataset.test.labels.tolist() == [0, 1, 1]
    assert dataset.test.images[:, 0, 0, 0].tolist() == [0, 20, 40]


def test_words(tmp_path: Path) -> None:
    write(tmp_path / "train.tar", samples(["cat", "ant"] * 3, mark=1))
    write(tmp_path / "test.tar", samples(["cat"], mark=2))
    dataset = load(tmp_path)
    assert dataset.class_names == ("ant", "cat")
    assert dataset.test.labels.tolist() == [1]


@pytest.mark.parametrize(("field", "given"), [("label", None), ("cls", None), ("species", "species")])
def test_labels_in_json(tmp_path: Path, field: str, given: str | None) -> None:
    for mark, split in enumerate(("train", "test"), 1):
        labels = [{field: label, "width": 8} for label in (0, 1) * 3]
        write(tmp_path / f"{split}.tar", samples(labels, mark=mark, kind="json"))
    assert load(tmp_path, label_column=given).test.labels.tolist() == [0, 1] * 3
    with pytest.raises(DataError, match=r"data\.label_column='color': no color in the json of .* sample a/0000"):
        load(tmp_path, label_column="color")


def test_of_several_images_one_must_be_named(tmp_path: Path) -> None:
    for mark, split in enumerate(("train", "test"), 1):
        members = []
        for image, label in zip(*[iter(samples([0, 1] * 3, mark=mark))] * 2, strict=True):
            members += [image, (image[0].replace(".png", ".seg.png"), png(7, 7)), label]
        write(tmp_path / f"{split}.tar", members)
    with pytest.raises(DataError, match=r"data\.image_column=None must name one image .* has png, seg\.png"):
        load(tmp_path)
    assert load(tmp_path, image_column="png").test.images[1, 0, 0, 0] == 20


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([], "has no samples in its test files"),
        ([("0.png", png(1, 1))], r"sample 0 has no label \(cls, label, txt, json\), but nothing"),
        ([("0.png", png(1, 1)), ("0.cls", b" ")], "sample 0 has an empty label"),
        ([("0.cls", b"1")], "must name one image of each sample, of which .* sample 0 has none"),
        ([("0.png", png(1, 1)[:40]), ("0.cls", b"1")], "cannot decode the image in .* sample 0"),
        ([("0.png", png(1, 1)), ("0.json", b"{")], "no label or cls in the json"),
        ([("0.png", png(1, 1)), ("0.json", b"[1]")], "no label or cls in the json"),
    ],
)
def test_bad_samples_are_located(tmp_path: Path, members: list[tuple[str, bytes]], reason: str) -> None:
    write(tmp_path / "train.tar", samples([0, 1] * 3, mark=1))
    write(tmp_path / "test.tar", members)
    with pytest.raises(DataError, match=reason):
        load(tmp_path)


@pytest.mark.parametrize("damage", [lambda content: b"no tar", lambda content: content[:700], lambda content: b""])
def test_damaged_files_are_named(tmp_path: Path, damage: Any) -> None:
    write(tmp_path / "train.tar", samples([0, 1] * 3, mark=1))
    write(tmp_path / "test.tar", samples([0, 1], mark=2))
    (tmp_path / "test.tar").write_bytes(damage((tmp_path / "test.tar").read_bytes()))
    with pytest.raises(DataError, match=r"data\.path: cannot read .*test\.tar as tar"):
        load(tmp_path)


def test_links_and_notes_are_left_out(tmp_path: Path) -> None:
    write(tmp_path / "train.tar", samples([0, 1] * 3, mark=1))
    write(tmp_path / "test.tar", [("README", b"x"), *samples([0, 1], mark=2), ("a/._0001.png", b"note")])
    with tarfile.open(tmp_path / "test.tar", "a") as tar:
        link = tarfile.TarInfo("passwd.cls")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    assert len(load(tmp_path).test) == 2
