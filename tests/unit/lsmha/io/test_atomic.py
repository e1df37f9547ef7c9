"""Files that are whole or not there, whatever happens to the writer."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lsmha.io.atomic import abandoned_temporaries, atomic_path, atomic_write_bytes, atomic_write_text


def _write_half_then_raise(target: Path) -> None:
    with atomic_path(target) as temporary:
        temporary.write_text("half of the n", encoding="utf-8")
        raise RuntimeError("disk full")


def test_success_replaces_the_file(tmp_path: Path) -> None:
    target = tmp_path / "result.json"
    for text in ("old", "new, and longer\n", "short"):
        with atomic_path(target) as temporary:
            temporary.write_text(text, encoding="utf-8")
            assert not target.exists() or target.read_text(encoding="utf-8") != text
        assert target.read_text(encoding="utf-8") == text
        assert list(tmp_path.iterdir()) == [target]


def test_no_folder_is_made(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as raised:
        atomic_write_bytes(tmp_path / "gone" / "c.bin", b"x")
    assert raised.value.filename == str(tmp_path / "gone" / "c.bin")
    assert list(tmp_path.iterdir()) == []


def test_folder_that_vanishes_meanwhile_is_not_begun_anew(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(FileNotFoundError), atomic_path(run / "x.txt"):
        run.rename(tmp_path / "moved")
    assert list(tmp_path.iterdir()) == [tmp_path / "moved"]


def test_replaced_file_can_be_kept(tmp_path: Path) -> None:
    target, previous = tmp_path / "x.bin", tmp_path / "old.bin"
    atomic_write_bytes(target, b"1", previous=previous)
    assert not previous.exists()
    for number in (2, 3):
        atomic_write_bytes(target, str(number).encode(), previous=previous)
        assert (target.read_text(), previous.read_text()) == (str(number), str(number - 1))
    with pytest.raises(RuntimeError, match="disk full"), atomic_path(target, previous=previous):
        raise RuntimeError("disk full")
    assert (target.read_text(), previous.read_text()) == ("3", "2")
    assert sorted(tmp_path.iterdir()) == [previous, target]


def test_failure_to_remove_the_temporary_does_not_hide_the_first_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "unlink", fail)
    with pytest.raises(RuntimeError, match="disk full"):
        _write_half_then_raise(tmp_path / "result.json")


def test_temporary_path_is_a_hidden_neighbor_with_the_same_suffix(tmp_path: Path) -> None:
    with atomic_path(str(tmp_path / "figure.png")) as temporary:
        assert temporary.parent == tmp_path  # the same file system, or renaming would copy
        assert temporary.suffix == ".png"
        assert temporary.name.startswith(".")
        temporary.touch()


def test_exception_leaves_the_old_file_and_no_temporary(tmp_path: Path) -> None:
    target = tmp_path / "result.json"
    atomic_write_text(target, "old")
    with pytest.raises(RuntimeError, match="disk full"):
        _write_half_then_raise(target)
    assert target.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_exception_without_an_old_file_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="disk full"):
        _write_half_then_raise(tmp_path / "result.json")
    assert list(tmp_path.iterdir()) == []


def test_block_that_writes_nothing_is_an_error_and_keeps_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "result.json"
    atomic_write_text(target, "old")
    with pytest.raises(FileNotFoundError), atomic_path(target):
        pass
    assert target.read_text(encoding="utf-8") == "old"


def test_text_is_utf_8(tmp_path: Path) -> None:
    atomic_write_text(tmp_path / "x.txt", "Größe: 2 µs\n")
    assert (tmp_path / "x.txt").read_bytes() == "Größe: 2 µs\n".encode()


def test_killed_writer_leaves_the_old_file_and_blocks_nobody(tmp_path: Path) -> None:
    target = tmp_path / "result.json"
    atomic_write_text(target, "old")
    code = """
import os, signal, sys
from lsmha.io.atomic import atomic_path

with atomic_path(sys.argv[1]) as temporary, open(temporary, "w", encoding="utf-8") as file:
    file.write("half of the n")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", code, target], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert target.read_text(encoding="utf-8") == "old"
    assert sorted([*abandoned_temporaries(tmp_path), target]) == sorted(tmp_path.iterdir())
    assert len(abandoned_temporaries(tmp_path)) == 1
    atomic_write_text(target, "new")
    assert target.read_text(encoding="utf-8") == "new"


def test_reader_of_the_old_file_keeps_it(tmp_path: Path) -> None:
    target = tmp_path / "result.json"
    atomic_write_text(target, "old")
    with open(target, encoding="utf-8") as file:
        atomic_write_text(target, "new")
        assert file.read() == "old"
        assert os.stat(target).st_ino != os.fstat(file.fileno()).st_ino


def test_abandoned_temporaries_are_told_from_other_files(tmp_path: Path) -> None:
    names = ["x.json", "a.b.parquet", "t0001-s0.previous.pt", "plain"]
    for name in [*names, ".hidden", ".hidden.json", "x.12.json"]:
        atomic_write_text(tmp_path / name, "x")
    assert abandoned_temporaries(tmp_path) == []
    temporaries = []
    for name in names:
        with atomic_path(tmp_path / name) as temporary:
            temporary.touch()
            temporaries += abandoned_temporaries(tmp_path)
    assert [path.name for path in temporaries] == [
        f".{stem}.{os.getpid()}{suffix}"
        for stem, suffix in [("x", ".json"), ("a.b", ".parquet"), ("t0001-s0.previous", ".pt"), ("plain", "")]
    ]
