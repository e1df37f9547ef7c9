"""Parquet tables, each written whole and atomically."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lsmha.io.checksums import CHECKSUM_PLACEHOLDER, read_checked, write_checked
from lsmha.io.paths import RunPath


def write_table(path: RunPath, rows: Sequence[Mapping[str, Any]]) -> None:
    """Replace the table at `path` by `rows`; a column that a row lacks is null there.

    Raises:
        OSError: The storage is full, read-only or gone; the old table stays.
    """
    table = as_table(rows)
    # In memory: a full disk is an OSError of ours then, and not whatever pyarrow makes of it.
    buffer = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata({"checksum": CHECKSUM_PLACEHOLDER}), buffer, write_page_checksum=True)
    write_checked(path, buffer.getvalue().to_pybytes())


def as_table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Rows as the table that `write_table` writes of them."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    return pa.table({column: [row.get(column) for row in rows] for column in columns})


def read_table(path: RunPath) -> pa.Table:
    """The table that `write_table` wrote.

    Raises:
        OSError: It cannot be read.
        DamagedFileError: It is not what was written, or was not written by `write_table`.
    """
    return pq.read_table(pa.BufferReader(read_checked(path))).replace_schema_metadata(None)
