"""Parquet files: columns found and given, class names, sizes, and each kind of bad input."""

import io
import json
import os
import warnings
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from png_images import png

from lsmha.config import DataConfig
from lsmha.data import load_dataset
from lsmha.errors import DataError

NAMES = ("ant", "bee", "cat")
IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def write(file, labels, *, images=None, names=NAMES, image_column="img", label_column="label", extra=None):
    mark = zlib.crc32(file.name.encode()) % 255 + 1
    images = [png(10 * i, mark=mark) for i in range(len(labels))] if images is None else images
    columns = {
        image_column: pa.array([{"bytes": b, "path": None} for b in images], IMAGE),
        label_column: pa.array(labels, pa.int64()),
    }
    table = pa.table({**columns, **(extra or {})})
    if names is not None:
        features = {label_column: {"_type": "ClassLabel", "names": list(names)}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, file, row_group_size=4)


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "train-00000-of-00002.parquet", [0, 1, 2] * 3)
    write(tmp_path / "train-00001-of-00002.parquet", [2, 1, 0] * 3)
    write(tmp_path / "test-00000-of-00001.parquet", [0, 1, 2])
    return tmp_path


def load(path, on_note=warnings.warn, **settings):
    settings = {"val_fraction": 0.2, **settings}
    return load_dataset(DataConfig(name="parquet", path=str(path), **settings), on_note=on_note)


def test_files_columns_and_names_are_found(folder):
    reports = []
    config = DataConfig(name="parquet", path=str(folder), val_fraction=0.2)
    dataset = load_dataset(config, on_progress=lambda *report: reports.append(report))
    assert dataset.class_names == NAMES
    assert [len(part) for part in (dataset.train, dataset.val, dataset.test)] == [14, 4, 3]
    assert dataset.test.labels.tolist() == [0, 1, 2]
    assert dataset.test.images[:, :, 0, 0].tolist() == [[0, 0, 255], [10, 0, 255], [20, 0, 255]]
    assert reports == [("decoding train images", 18, 18), ("decoding test images", 3, 3)]


def test_a_glob_selects_files(folder):
    (folder / "train-broken.parquet").write_bytes(b"no parquet")
    assert len(load(folder / "t*-0*.parquet").test) == 3


def test_validation_files_stand_in_for_test_files(folder):
    (folder / "test-00000-of-00001.parquet").rename(folder / "validation-00000-of-00001.parquet")
    assert len(load(folder).test) == 3


def test_columns_can_be_given_and_must_be_when_ambiguous(tmp_path):
    for split in ("train", "test"):
        extra = {"coarse": pa.array([0, 1] * 3), "thumb": pa.array([{"bytes": b""}] * 6)}
        write(tmp_path / f"{split}.parquet", [0, 1, 2] * 2, label_column="fine", extra=extra)
    with pytest.raises(DataError, match=r"data\.image_column=None .* img, thumb"):
        load(tmp_path, label_column="fine")
    with pytest.raises(DataError, match=r"data\.label_column=None .* fine, coarse"):
        load(tmp_path, image_column="img")
    with pytest.raises(DataError, match=r"data\.label_column='img' .* fine, coarse"):
        load(tmp_path, image_column="img", label_column="img")
    assert load(tmp_path, image_column="img", label_column="coarse").class_names == ("0", "1")
    assert load(tmp_path, image_column="img", label_column="fine").class_names == NAMES


def test_names_fall_back_to_numbers(tmp_path):
    for split in ("train", "test"):
        write(tmp_path / f"{split}.parquet", [0, 1] * 3, names=None)
    assert load(tmp_path).class_names == ("0", "1")


def test_different_sizes_are_resized_to_224_or_as_given(folder):
    write(folder / "test-00000-of-00001.parquet", [0, 1], images=[png(7, (9, 5)), png(7, mode="L")])
    assert load(folder).img_size == 8
    assert load(folder).test.images.shape == (2, 3, 8, 8)
    assert load(folder, img_size=16).img_size == 16
    write(folder / "train-00000-of-00002.parquet", [0, 1, 2], images=[png(8), png(17, (9, 9)), png(27)])
    dataset = load(folder)
    assert dataset.img_size == 224
    assert torch.equal(dataset.test.images[1], torch.full((3, 224, 224), 7, dtype=torch.uint8))


def test_resizing_is_antialiased(folder):
    board = np.indices((64, 64)).sum(0) % 2 * 255
    buffer = io.BytesIO()
    Image.fromarray(board.astype(np.uint8)).save(buffer, "png")
    write(folder / "test-00000-of-00001.parquet", [0], images=[buffer.getvalue()])
    center = load(folder).test.images[0, :, 2:6, 2:6].float()
    assert (center - 127.5).abs().max() < 5


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, -1, 2], r"data\.label_column='label' is -1 in .*test.* row 1"),
        ([0, 1, None], r"data\.label_column='label' is None in .*test.* row 2"),
        ([0, 1, 3], r"test labels 0\.\.3; they must lie in 0\.\.2"),
        ([], r"data\.path=.* no rows in its test files"),
    ],
)
def test_bad_labels(folder, labels, message):
    write(folder / "test-00000-of-00001.parquet", labels)
    with pytest.raises(DataError, match=message):
        load(folder)


@pytest.mark.parametrize("damaged", [None, b"", png(3)[:45]])
def test_bad_images_are_located(folder, damaged):
    write(folder / "train-00001-of-00002.parquet", [0, 1, 2], images=[png(1), png(2), damaged])
    with pytest.raises(DataError, match=r"image in .*train-00001-of-00002\.parquet row 2") as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_a_label_without_images_is_left_out(tmp_path):
    write(tmp_path / "train.parquet", [0, 2] * 3)
    write(tmp_path / "test.parquet", [0, 2])
    notes = []
    dataset = load(tmp_path, on_note=notes.append)
    assert dataset.class_names == ("ant", "cat")
    assert dataset.test.labels.tolist() == [0, 1]
    assert len(notes) == 1
    assert "1 labels have no image and are left out: bee" in notes[0]


def test_a_label_without_training_images(tmp_path):
    write(tmp_path / "train.parquet", [0, 2] * 3)
    write(tmp_path / "test.parquet", [0, 1])
    with pytest.raises(DataError, match=r"no training image of labels 1, which test images have"):
        load(tmp_path)


def test_labels_may_begin_anywhere(tmp_path):
    for split in ("train", "test"):
        write(tmp_path / f"{split}.parquet", [1, 7, 10] * 2, names=None)
    dataset = load(tmp_path)
    assert dataset.class_names == ("1", "7", "10")
    assert dataset.test.labels.tolist() == [0, 1, 2] * 2


@pytest.mark.parametrize("hidden", [-1, None])
def test_hidden_test_labels(folder, hidden):
    write(folder / "test-00000-of-00001.parquet", [hidden] * 3)
    with pytest.raises(DataError, match=r"is (-1|None) in .*test"):
        load(folder)
    write(folder / "validation-00000-of-00001.parquet", [0, 1, 2, 0])
    notes = []
    assert len(load(folder, on_note=notes.append).test) == 4
    assert "test labels are hidden, so validation images are the test images" in notes[0]


def words(values, kind):
    array = pa.array(values, pa.string())
    return array.dictionary_encode() if kind == "dictionary" else array.cast(kind)


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), "dictionary"])
def test_words_are_labels(tmp_path, kind):
    for split, labels in (("train", ["cat", "ant", "bee"] * 3), ("test", ["bee", "cat"])):
        table = pa.table(
            {"image": [png(9 * i, mark=len(labels)) for i in range(len(labels))], "kind": words(labels, kind)}
        )
        pq.write_table(table, tmp_path / f"{split}.parquet")
    dataset = load(tmp_path)
    assert dataset.class_names == ("ant", "bee", "cat")
    assert dataset.test.labels.tolist() == [1, 2]


def test_a_word_that_no_training_image_has(tmp_path):
    for split, labels in (("train", ["ant", "bee"] * 3), ("test", ["ant", "dog"])):
        pq.write_table(
            pa.table({"image": [png(9 * i) for i in range(len(labels))], "label": labels}),
            tmp_path / f"{split}.parquet",
        )
    with pytest.raises(DataError, match="no training image of labels dog"):
        load(tmp_path)


def test_captions_are_no_labels_where_there_are_numbers(tmp_path):
    for split in ("train", "test"):
        write(tmp_path / f"{split}.parquet", [0, 1, 2] * 2, extra={"caption": [f"an animal {i}" for i in range(6)]})
    assert load(tmp_path).class_names == NAMES


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_plain_bytes_are_images(tmp_path, kind):
    for mark, split in enumerate(("train", "test"), 1):
        images = pa.array([png(10 * i, mark=mark) for i in range(6)], kind)
        pq.write_table(pa.table({"picture": images, "label": [0, 1] * 3}), tmp_path / f"{split}.parquet")
    assert len(load(tmp_path).test) == 6


def write_paths(folder, names, labels, *, plain):
    for split in ("train", "test"):
        paths = [name.format(split=split) for name in names]
        column = paths if plain else pa.array([{"bytes": None, "path": p} for p in paths], IMAGE)
        pq.write_table(pa.table({"image": column, "label": labels}), folder / f"{split}.parquet")


@pytest.mark.parametrize("plain", [False, True])
def test_images_beside_the_file(tmp_path, plain):
    (tmp_path / "pictures").mkdir()
    for mark, split in enumerate(("train", "test"), 1):
        for i in range(6):
            (tmp_path / "pictures" / f"{split}-{i}.png").write_bytes(png(10 * i, mark=mark))
    write_paths(tmp_path, [f"pictures/{{split}}-{i}.png" for i in range(6)], [0, 1] * 3, plain=plain)
    dataset = load(tmp_path, image_column="image" if plain else None)
    assert dataset.test.images[:, 0, 0, 0].tolist() == [0, 10, 20, 30, 40, 50]


@pytest.mark.parametrize("name", ["/etc/passwd", "../{split}.png", "a/../../b.png"])
def test_images_elsewhere_are_refused(tmp_path, name):
    write_paths(tmp_path, [name] * 6, [0, 1] * 3, plain=False)
    with pytest.raises(DataError, match=r"row 0 names .*; without bytes, images must lie below the file's own folder"):
        load(tmp_path)


def test_names_that_differ_between_files(folder):
    write(folder / "test-00000-of-00001.parquet", [0, 1, 2], names=("cat", "bee", "ant"))
    with pytest.raises(DataError, match=r"the names of the labels in .*train-00000.* are not those in .*test-00000"):
        load(folder)


def test_columns_and_their_types_are_named(tmp_path):
    for split in ("train", "test"):
        pq.write_table(
            pa.table({"score": [0.5, 0.25], "when": pa.array([0, 1], pa.timestamp("ms"))}),
            tmp_path / f"{split}.parquet",
        )
    with pytest.raises(DataError, match=r"has none among score \(double\), when \(timestamp\[ms\]\)"):
        load(tmp_path)


def test_folders_of_a_hive(tmp_path):
    for mark, split in enumerate(("train", "test"), 1):
        for level, name in enumerate(("cat", "ant")):
            part = tmp_path / f"split={split}" / f"animal={name}"
            part.mkdir(parents=True)
            images = [png(50 * level + i, mark=mark) for i in range(3)]
            pq.write_table(pa.table({"image": images}), part / "part-0.parquet")
    dataset = load(tmp_path)
    assert dataset.class_names == ("ant", "cat")
    assert dataset.test.labels.tolist() == [0] * 3 + [1] * 3
    assert dataset.test.images[:3, 0, 0, 0].tolist() == [50, 51, 52]


def test_names_that_are_not_utf_8(folder, tmp_path):
    odd = tmp_path / os.fsdecode(b"na\xefve")
    odd.mkdir()
    for file in folder.glob("*.parquet"):
        file.rename(odd / file.name)
    assert len(load(odd).test) == 3
    (odd / "train-00000-of-00002.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match=r"na\\xefve") as caught:
        load(odd)
    str(caught.value).encode("utf-8")


def test_a_single_class(tmp_path):
    for split in ("train", "test"):
        write(tmp_path / f"{split}.parquet", [0, 0], names=None)
    with pytest.raises(DataError, match="at least 2"):
        load(tmp_path)


@pytest.mark.parametrize("content", [b"no parquet", None])
def test_a_corrupt_file_is_named(folder, content):
    file = folder / "train-00001-of-00002.parquet"
    if content is None:  # intact footer, damaged pages
        intact = file.read_bytes()
        content = intact[:4] + bytes(len(intact) // 3) + intact[4 + len(intact) // 3 :]
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"data\.path: cannot read .*train-00001-of-00002\.parquet"):
        load(folder)


def test_missing_files(folder, tmp_path):
    with pytest.raises(DataError, match=r"data\.path=.*nowhere' matches nothing, but needs files named train"):
        load(tmp_path / "nowhere")
    (folder / "test-00000-of-00001.parquet").unlink()
    with pytest.raises(DataError, match=r"data\.path=.* 2 Parquet files, but needs files named test\* or validation\*"):
        load(folder)
    with pytest.raises(DataError, match=r"data\.path must be"):
        load_dataset(DataConfig(name="parquet"))
