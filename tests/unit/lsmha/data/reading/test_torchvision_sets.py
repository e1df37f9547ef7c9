"""CIFAR from a local archive and folders of images, without any network."""

import hashlib
import os
import pickle
import tarfile

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets

from lsmha.config import DataConfig
from lsmha.data import load_dataset
from lsmha.errors import DataError


def md5(file):
    return hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()


@pytest.fixture
def cifar100_archive(tmp_path, monkeypatch):
    """A folder with cifar-100-python.tar.gz of 40 + 10 images; torchvision's MD5 sums match it."""
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: pytest.fail("the network was used"))
    build, root = tmp_path / "build", tmp_path / "root"
    build.mkdir()
    root.mkdir()
    rng = np.random.default_rng(0)
    for name, count in {"train": 400, "test": 100}.items():
        data = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
        labels = [i % 100 for i in range(count)]
        (build / name).write_bytes(pickle.dumps({"data": data, "fine_labels": labels}))
    (build / "meta").write_bytes(pickle.dumps({"fine_label_names": [f"name{i}" for i in range(100)]}))
    archive = root / "cifar-100-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(build, "cifar-100-python")
    source = datasets.CIFAR100
    monkeypatch.setattr(source, "tgz_md5", md5(archive))
    monkeypatch.setattr(source, "train_list", [["train", md5(build / "train")]])
    monkeypatch.setattr(source, "test_list", [["test", md5(build / "test")]])
    monkeypatch.setattr(source, "meta", {**source.meta, "md5": md5(build / "meta")})
    return root


@pytest.mark.parametrize("download", [True, False])
def test_cifar100_from_a_local_archive(cifar100_archive, download):
    config = DataConfig(name="cifar100", path=str(cifar100_archive), download=download, val_fraction=0.25)
    dataset = load_dataset(config)
    assert [len(part) for part in (dataset.train, dataset.val, dataset.test)] == [300, 100, 100]
    assert dataset.class_names[:2] == ("name0", "name1")
    assert dataset.test.labels.tolist() == list(range(100))
    with open(cifar100_archive / "cifar-100-python" / "test", "rb") as file:
        expected = pickle.load(file)["data"].reshape(-1, 3, 32, 32)
    assert np.array_equal(dataset.test.images.numpy(), expected)


def test_absent_cifar_says_what_to_do(tmp_path):
    config = DataConfig(name="cifar10", path=str(tmp_path), download=False)
    with pytest.raises(DataError, match=r"data\.path=.*put cifar-10-python\.tar\.gz into") as caught:
        load_dataset(config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["cifar100", "flowers102"])
def test_failed_download_says_what_to_do(tmp_path, monkeypatch, name):
    def offline(*_, **__):
        raise OSError("network is unreachable")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    with pytest.raises(DataError, match=r"network is unreachable.*put .*gz"):
        load_dataset(DataConfig(name=name, path=str(tmp_path)))


@pytest.fixture
def image_root(tmp_path):
    for split, count in {"train": 4, "test": 2}.items():
        for level, label in enumerate(("ant", "bee")):
            (tmp_path / split / label).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (6, 6), (100 * level, i, count)).save(tmp_path / split / label / f"{i}.png")
    return tmp_path


def load(path, **settings):
    return load_dataset(DataConfig(name="imagefolder", path=str(path), val_fraction=0.25, **settings))


def test_imagefolder(image_root):
    dataset = load(image_root)
    assert dataset.class_names == ("ant", "bee")
    assert (dataset.img_size, dataset.in_channels) == (6, 3)
    assert dataset.test.labels.tolist() == [0, 0, 1, 1]
    assert dataset.test.images[:, :, 0, 0].tolist() == [[0, 0, 2], [0, 1, 2], [100, 0, 2], [100, 1, 2]]
    assert [len(dataset.train), len(dataset.val)] == [6, 2]


@pytest.mark.parametrize(
    "hidden",
    [
        "{split}/.ipynb_checkpoints/x.png",
        "{split}/ant/._0.png",
        "{split}/__MACOSX/0.png",
        "{split}/bee/.thumbs/0.png",
        ".cache/{split}/ant/0.png",
    ],
)
def test_hidden_folders_and_files_are_left_out(image_root, hidden):
    for split in ("train", "test"):
        file = image_root / hidden.format(split=split)
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 6), (1, 2, 3)).save(file)
    dataset = load(image_root)
    assert dataset.class_names == ("ant", "bee")
    assert [len(dataset.train) + len(dataset.val), len(dataset.test)] == [8, 4]


@pytest.mark.parametrize("name", ["val", "valid", "validation", "Test", "testing"])
def test_imagefolder_of_test_images_by_other_names(image_root, name):
    (image_root / "test").rename(image_root / "renamed")
    (image_root / "renamed").rename(image_root / name)
    assert len(load(image_root).test) == 4


def test_imagefolder_with_two_training_folders(image_root):
    (image_root / "train_old").mkdir()
    with pytest.raises(DataError, match=r"needs train/ .*, one of that kind, but has train, train_old"):
        load(image_root)


def test_imagefolder_of_names_that_are_not_utf_8(image_root):
    for split in ("train", "test"):
        (image_root / split / "bee").rename(image_root / split / os.fsdecode(b"b\xeee"))
    assert load(image_root).class_names == ("ant", "b\\xeee")


def test_files_that_are_no_images_are_left_out(image_root):
    (image_root / "train" / "ant" / "notes.txt").write_text("ants")
    assert len(load(image_root).test) == 4


def test_imagefolder_resizes(image_root):
    Image.new("L", (10, 20), 9).save(image_root / "train" / "ant" / "0.png")
    assert load(image_root).img_size == 224
    assert load(image_root, img_size=12).train.images.shape[1:] == (3, 12, 12)


def test_imagefolder_labels_must_agree(image_root):
    (image_root / "test" / "bee").rename(image_root / "test" / "cow")
    with pytest.raises(DataError, match="only one has bee, cow"):
        load(image_root)


def test_imagefolder_without_folders(image_root, tmp_path):
    with pytest.raises(DataError, match=r"data\.path=.*nowhere' needs train/"):
        load(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"data\.path must be"):
        load_dataset(DataConfig(name="imagefolder"))


def test_imagefolder_names_the_damaged_file(image_root):
    (image_root / "train" / "bee" / "1.png").write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"cannot decode the image in .*bee.1\.png"):
        load(image_root)
