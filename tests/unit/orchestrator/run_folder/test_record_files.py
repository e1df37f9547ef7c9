"""A record is what was written or it is refused, and says what was run."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from lsmha.errors import DamagedFileError
from orchestrator.run_folder.content_hash import content_hash
from orchestrator.run_folder.record_files import StoredRecord, read_record, record_path, write_record

KEY, OTHER_KEY = content_hash({"work": 1}), content_hash({"work": 2})
CONTENT = {"accuracy": 0.1, "n": 10**18, "error": None, "name": "a\u2028\u00e9 b", "rows": [{"a": [1.0, -0.0]}]}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A record, written."""
    write_record(tmp_path / "trials", "t0007", KEY, CONTENT)
    return record_path(tmp_path / "trials", "t0007", KEY)


def test_a_record_is_readable_and_comes_back(path: Path) -> None:
    assert path.name == f"t0007-{KEY[:12]}.json"
    assert read_record(path) == StoredRecord("t0007", KEY, CONTENT)
    record = json.loads(path.read_text(encoding="utf-8"))
    assert list(record) == ["name", "key", "checksum", "content"]
    assert (record["name"], record["key"], record["content"]) == ("t0007", KEY, CONTENT)


def test_every_flipped_bit_is_refused(tmp_path: Path) -> None:
    write_record(tmp_path, "t", KEY, 1)
    path = record_path(tmp_path, "t", KEY)
    whole = path.read_bytes()
    with path.open("r+b", buffering=0) as file:
        for bit in range(8 * len(whole)):
            place, byte = bit // 8, whole[bit // 8]
            os.pwrite(file.fileno(), bytes([byte ^ 1 << bit % 8]), place)
            with pytest.raises(DamagedFileError) as refused:
                read_record(path)
            assert str(path) in str(refused.value), bit
            os.pwrite(file.fileno(), bytes([byte]), place)
    assert read_record(path).content == 1


def test_every_truncation_and_addition_is_refused(path: Path) -> None:
    whole = path.read_bytes()
    for damaged in (*(whole[:length] for length in range(len(whole))), whole + b" ", whole + b"\0", b"\n" + whole):
        path.write_bytes(damaged)
        with pytest.raises(DamagedFileError) as refused:
            read_record(path)
        assert str(path) in str(refused.value)


@pytest.mark.parametrize("name", [f"t0008-{KEY[:12]}.json", f"t0007-{OTHER_KEY[:12]}.json", "t0007.json"])
def test_a_renamed_record_is_refused(path: Path, name: str) -> None:
    renamed = path.rename(path.with_name(name))
    with pytest.raises(DamagedFileError, match=name):
        read_record(renamed)


def test_a_file_without_a_seal_is_no_record(path: Path) -> None:
    path.write_text(json.dumps({"name": "t0007", "key": KEY, "content": CONTENT}))
    with pytest.raises(DamagedFileError, match=path.name):
        read_record(path)


def test_what_is_recorded_stays(path: Path) -> None:
    before = (path.read_bytes(), os.stat(path).st_mtime_ns)
    write_record(path.parent, "t0007", KEY, {"accuracy": 0.9})
    assert (path.read_bytes(), os.stat(path).st_mtime_ns) == before
    write_record(path.parent, "t0007", OTHER_KEY, {"accuracy": 0.9})  # other work has its own file
    assert len(list(path.parent.iterdir())) == 2
    assert read_record(path).content == CONTENT


def test_where_the_latest_counts_it_replaces(path: Path) -> None:
    write_record(path.parent, "t0007", KEY, {"accuracy": 0.9}, replace=True)
    assert read_record(path).content == {"accuracy": 0.9}
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("content", [{"a": float("nan")}, [float("-inf")], {"a": object()}, {"a": Path("b")}])
def test_what_is_not_plain_and_finite_leaves_no_file(tmp_path: Path, content: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        write_record(tmp_path / "trials", "t0007", KEY, content)
    assert list(tmp_path.iterdir()) == []


def test_a_text_in_the_content_cannot_pass_for_the_seal(path: Path) -> None:
    """Such as the error of a trial that read another record."""
    text = json.loads(path.read_text())["checksum"]
    before = path.read_bytes()
    try:
        write_record(path.parent, "t0008", KEY, {"error": text})
    except ValueError:
        assert list(path.parent.iterdir()) == [path]
    else:
        assert read_record(record_path(path.parent, "t0008", KEY)).content == {"error": text}
    assert path.read_bytes() == before
