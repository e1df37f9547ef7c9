"""Parquet tables: what was written, or an error that names the file."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from lsmha.errors import DamagedFileError
from lsmha.io.checksums import CHECKSUM_PLACEHOLDER, write_checked
from lsmha.io.tables import read_table, write_table

ROWS: list[dict[str, Any]] = [
    {"id": "t0000", "epochs": 3, "loss": 0.1, "done": True, "clusters": [[0, 1], []], "model": {"depth": 2}},
    {"id": "Größe", "epochs": None, "loss": -0.0, "done": None, "clusters": None, "model": None, "late": "only here"},
    {"id": "", "epochs": -(2**62), "loss": math.inf, "done": False, "clusters": [], "model": {"depth": None}},
]


def test_table_comes_back_as_it_was_written(tmp_path: Path) -> None:
    for rows in ([], ROWS, ROWS[:1], [{}]):
        write_table(tmp_path / "x.parquet", rows)
        columns = list(dict.fromkeys(name for row in rows for name in row))
        expected = pa.table({name: [row.get(name) for row in rows] for name in columns})
        table = read_table(tmp_path / "x.parquet")
        assert table.equals(expected)
        assert table.schema.metadata is None
        assert [path.name for path in tmp_path.iterdir()] == ["x.parquet"]


def test_other_readers_take_it(tmp_path: Path) -> None:
    write_table(tmp_path / "x.parquet", ROWS)
    frame = pd.read_parquet(tmp_path / "x.parquet")
    assert list(frame["id"]) == ["t0000", "Größe", ""]
    assert [list(labels) for labels in frame["clusters"][0]] == [[0, 1], []]
    assert frame["model"][0] == {"depth": 2}


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    write_table(path, [{"id": row["id"], "clusters": row["clusters"]} for row in ROWS])
    content = path.read_bytes()
    for place in range(0, 8 * len(content), 7):  # of every eight bytes, each bit of another one
        damaged = bytearray(content)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.raises(DamagedFileError) as raised:
            read_table(path)
        assert str(path) in str(raised.value)
    path.write_bytes(content)
    assert read_table(path).num_rows == 3


def test_each_shorter_file_is_found(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    write_table(path, ROWS)
    content = path.read_bytes()
    for kept in range(len(content)):
        path.write_bytes(content[:kept])
        with pytest.raises(DamagedFileError):
            read_table(path)


def test_table_of_another_writer_is_refused(tmp_path: Path) -> None:
    pd.DataFrame({"x": [1]}).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(DamagedFileError, match=r"x\.parquet"):
        read_table(tmp_path / "x.parquet")


def test_absent_table_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"x\.parquet"):
        read_table(tmp_path / "x.parquet")


@pytest.mark.parametrize(
    "content",
    [
        "",
        CHECKSUM_PLACEHOLDER * 2,
        CHECKSUM_PLACEHOLDER.replace("0", "a"),
        f"{CHECKSUM_PLACEHOLDER} lsmha-sha256:{64 * 'f'}",
    ],
)
def test_content_has_exactly_one_place_for_a_checksum(content: str, tmp_path: Path) -> None:
    # Where the text of a column looks like a checksum, which of them to fill could not be told.
    with pytest.raises(ValueError, match="one place for its checksum"):
        write_checked(tmp_path / "x", content.encode())
    assert list(tmp_path.iterdir()) == []
