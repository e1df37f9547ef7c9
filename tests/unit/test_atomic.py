"""Files that are whole or not there, whatever happens to the writer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lsmha.atomic import atomic_path, atomic_write_text


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


def test_folders_are_made(tmp_path: Path) -> None:
    atomic_write_text(tmp_path / "a" / "b" / "c.txt", "x")
    assert (tmp_path / "a" / "b" / "c.txt").read_bytes() == b"x"


def test_temporary_path_is_a_hidden_neighbour_with_the_same_suffix(tmp_path: Path) -> None:
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
from lsmha.atomic import atomic_path

with atomic_path(sys.argv[1]) as temporary, open(temporary, "w", encoding="utf-8") as file:
    file.write("half of the n")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", code, target], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert target.read_text(encoding="utf-8") == "old"
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == ["result.json"]
    atomic_write_text(target, "new")
    assert target.read_text(encoding="utf-8") == "new"


def test_reader_of_the_old_file_keeps_it(tmp_path: Path) -> None:
    target = tmp_path / "result.json"
    atomic_write_text(target, "old")
    with open(target, encoding="utf-8") as file:
        atomic_write_text(target, "new")
        assert file.read() == "old"
        assert os.stat(target).st_ino != os.fstat(file.fileno()).st_ino
