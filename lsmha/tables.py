"""Parquet tables, each written whole and atomically."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lsmha.atomic import atomic_path


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Replace the table at `path` by `rows`; a column that a row lacks is null there."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    table = pa.table({column: [row.get(column) for row in rows] for column in columns})
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, write_page_checksum=True)
