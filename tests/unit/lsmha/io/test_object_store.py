"""Files on an object store: as on a disk, or one line that says why not."""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import pickle
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
import ray
import torch
from botocore.exceptions import EndpointConnectionError
from tiny_data import assert_same_bits, tiny_dataset, tiny_model, tiny_recipe

from lsmha.errors import DamagedFileError
from lsmha.io import paths
from lsmha.io.atomic import abandoned_temporaries, atomic_path, atomic_write_bytes
from lsmha.io.object_store import ObjectPath, object_path
from lsmha.io.paths import is_remote, path_of
from lsmha.io.tables import read_table, write_table
from lsmha.models import CCT
from lsmha.training.checkpoints import load_state, remove_checkpoint, save_state
from lsmha.training.saved import load_logits, load_network, save_logits, save_model
from orchestrator.errors import UserError
from orchestrator.execution.ranks.rank_group import _storage_settings
from orchestrator.run_folder.location import check_new_folder, location
from orchestrator.run_folder.record_files import read_record, read_records, write_record
from orchestrator.storage_errors import storage_error_in

CPU = torch.device("cpu")


@pytest.fixture
def folder() -> Iterator[ObjectPath]:
    """A folder of a store in this process."""
    yield object_path("memory://bucket/runs/one")
    store = fsspec.filesystem("memory")
    store.store.clear()
    store.pseudo_dirs[:] = [""]


@pytest.mark.parametrize("text", ["", "run", "./a/../b", "/a//b/", "s3:/a/b", "./~"])
def test_local_paths_are_what_they_were(text: str) -> None:
    assert path_of(text) == Path(text)
    assert location(text) == Path(text)
    assert not is_remote(path_of(text))
    assert _storage_settings(location(text)) == {"storage_path": str(Path(text))}


@pytest.mark.parametrize(("text", "below"), [("~", "."), ("~/runs/x", "runs/x"), ("~/a b/../c", "a b/../c")])
def test_home_is_what_the_shell_would_make_of_it(
    text: str, below: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert location(text) == path_of(text) == tmp_path / below


@pytest.mark.parametrize("field", ["--out", "RUN"])
def test_nobodys_home_is_refused(field: str) -> None:
    with pytest.raises(UserError, match=rf"^{field}: must begin with a home folder that there is.*'~nosuchuser/x'$"):
        location("~nosuchuser/x", field=field)


@pytest.mark.parametrize("text", ["s3://bucket/runs/one", "s3://bucket/runs/one/"])
def test_a_url_is_on_an_object_store(text: str) -> None:
    path = location(text)
    assert is_remote(path)
    assert str(path / "x.json") == "s3://bucket/runs/one/x.json"
    assert str(pickle.loads(pickle.dumps(path)).parent) == "s3://bucket/runs"
    assert path_of(str(path)) == path
    assert _storage_settings(location(text))["storage_path"] == "bucket/runs/one"


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("ftp://host/x", "s3://bucket/folder"),
        ("file:///x", "s3://bucket/folder"),
        ("s3://", "s3://bucket/folder"),
        ("s3://bucket", "a folder in it"),
        ("s3://bucket/run*", "without any of"),
    ],
)
def test_other_urls_are_refused(text: str, word: str) -> None:
    with pytest.raises(UserError, match=r"^--out: must") as raised:
        location(text, field="--out")
    assert word in str(raised.value)
    assert repr(text) in str(raised.value)


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "find_spec", lambda _: None)
    for scheme, package, extra in (("s3", "s3fs", "s3"), ("gs", "gcsfs", "gcs")):
        with pytest.raises(UserError) as raised:
            location(f"{scheme}://bucket/run")
        assert str(raised.value) == f'RUN: {scheme}:// needs {package}: pip install "lsmha-sweep[{extra}]"'


def test_folders_and_files(folder: ObjectPath) -> None:
    assert not folder.exists()
    assert list(folder.glob("*")) == list(folder.rglob("*")) == []
    with pytest.raises(FileNotFoundError):
        folder.iterdir()
    record, hidden = folder / "records" / "trials" / "t1.json", folder / "records" / "trials" / ".t2.json"
    for path in (record, hidden, folder / "config.yaml"):
        path.write_bytes(b"1")
    assert folder.is_dir()
    assert record.is_file()
    assert [path.name for path in folder.iterdir()] == ["config.yaml", "records"]
    assert list((folder / "records").glob("*/[!.]*.json")) == [record]
    assert list(folder.glob("*.json")) == list((folder / "records").glob("*.json")) == []
    assert sorted(folder.rglob("*.json")) == [hidden, record]
    folder.rmdir()
    folder.mkdir()
    assert hidden.is_file()
    moved = folder / "damaged" / record.relative_to(folder)
    record.replace(moved)
    assert (record.exists(), moved.read_text()) == (False, "1")
    assert moved.create(b"2") is False
    assert moved.read_bytes() == b"1"
    with pytest.raises(FileNotFoundError) as raised:
        record.read_bytes()
    assert (raised.value.errno, raised.value.filename) == (errno.ENOENT, str(record))
    record.unlink(missing_ok=True)


def test_files_are_replaced_whole(folder: ObjectPath) -> None:
    target, previous = folder / "x.png", folder / "x.previous.png"
    for content in (b"1", b"2"):
        with atomic_path(target, previous=previous) as temporary:
            assert temporary.suffix == ".png"
            temporary.write_bytes(content)
    assert (target.read_bytes(), previous.read_bytes()) == (b"2", b"1")
    with pytest.raises(RuntimeError), atomic_path(target):
        raise RuntimeError
    with pytest.raises(FileNotFoundError), atomic_path(target):
        pass  # nothing is written
    assert target.read_bytes() == b"2"
    assert not temporary.parent.exists()
    atomic_write_bytes(folder / ".probe.12", b"")
    assert [path.name for path in abandoned_temporaries(folder)] == [".probe.12"]


def test_all_kinds_of_files_come_back(folder: ObjectPath) -> None:
    write_table(folder / "x.parquet", [{"a": 1, "b": "x"}])
    assert read_table(folder / "x.parquet").to_pylist() == [{"a": 1, "b": "x"}]
    for epoch in (1, 2):
        save_state({"epoch": epoch}, folder / "t.pt")
    (folder / "t.pt").write_bytes(b"damaged")
    assert load_state(folder / "t.pt", map_location=CPU).state == {"epoch": 1}
    remove_checkpoint(folder / "t.pt")
    dataset, model = tiny_dataset(), CCT(tiny_model()).eval()
    save_model(model, folder / "m", dataset=dataset, train_config=tiny_recipe())
    save_logits(model, folder / "m", "test", dataset=dataset, device=CPU)
    assert_same_bits(dict(load_network(folder / "m", img_size=8).state_dict()), dict(model.state_dict()))
    assert torch.equal(load_logits(folder / "m", "test").labels, dataset.test.labels)


def test_records_are_read_together(folder: ObjectPath, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        write_record(folder, f"t{number}", "ab" * 20, {"number": number})
    found = sorted(folder.glob("*.json"))
    one_by_one = [read_record(path) for path in found]
    found[1].write_bytes(b"{}")
    monkeypatch.setattr(ObjectPath, "read_bytes", lambda _: pytest.fail("one request after another"))
    together = list(read_records(found))
    assert [path for path, _ in together] == found
    assert [record for _, record in together[::2]] == one_by_one[::2]
    assert isinstance(together[1][1], DamagedFileError)


def test_a_folder_for_a_new_run(folder: ObjectPath) -> None:
    check_new_folder(folder)
    assert not folder.exists()
    (folder / "owner.json").write_bytes(b"{}")
    (folder / ".probe.12").write_bytes(b"")
    check_new_folder(folder)
    (folder / "x").write_bytes(b"")
    with pytest.raises(UserError, match="must be a new or empty folder"):
        check_new_folder(folder)


@pytest.mark.parametrize(
    ("raised", "number", "words"),
    [
        (EndpointConnectionError(endpoint_url="x"), errno.EIO, 'Could not connect to the endpoint URL: "x"'),
        (PermissionError("Access Denied"), errno.EACCES, "Access Denied"),
        (FileNotFoundError("The specified bucket does not exist"), errno.ENOENT, "The specified bucket does not exist"),
        (FileNotFoundError("bucket/x"), errno.ENOENT, "No such file or directory"),
        (OSError(errno.EBUSY, "Please reduce your request rate."), errno.EIO, "Please reduce your request rate."),
        (TimeoutError(), errno.EIO, "TimeoutError"),
    ],
    ids=["gone", "denied", "no bucket", "no file", "busy", "late"],
)
def test_what_a_store_raises_is_an_error_of_the_storage(
    folder: ObjectPath, monkeypatch: pytest.MonkeyPatch, raised: Exception, number: int, words: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise raised

    for name in ("cat_file", "pipe_file", "info"):
        monkeypatch.setattr(folder.fs, name, fail)
    path = folder / "x"
    for attempt in (path.read_bytes, lambda: path.write_bytes(b""), path.is_file):
        if attempt == path.is_file and number == errno.ENOENT:
            assert not path.is_file()
            continue
        with pytest.raises(OSError, match=r"memory://") as error:
            attempt()
        assert (error.value.errno, error.value.strerror, error.value.filename) == (number, words, str(path))
        from_task = ray.exceptions.RayTaskError("task", "Traceback ...", pickle.loads(pickle.dumps(error.value)))
        assert str(storage_error_in(from_task.as_instanceof_cause())) == str(error.value)


def test_requests_that_a_client_leaves_behind_are_not_talked_about(caplog: pytest.LogCaptureFixture) -> None:
    async def break_off() -> None:
        raise ConnectionResetError

    async def leave_behind() -> None:
        asyncio.get_running_loop().create_task(break_off())
        await asyncio.sleep(0)
        gc.collect()

    asyncio.run(leave_behind())
    logging.getLogger("asyncio").error("something else")
    assert [record.getMessage() for record in caplog.records] == ["something else"]


def test_a_bug_is_no_error_of_the_storage(folder: ObjectPath) -> None:
    with pytest.raises(TypeError):
        (folder / "x").write_bytes(None)  # type: ignore[arg-type]


def test_errors_of_other_writers_to_a_store() -> None:
    found = storage_error_in(EndpointConnectionError(endpoint_url="http://x"))
    assert found is not None
    assert "Could not connect" in str(found)
