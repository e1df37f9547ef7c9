"""The Parquet tables of a run, which follow from its records."""

from __future__ import annotations

from typing import Any

from lsmha.io.tables import write_table
from orchestrator.run_folder.ledger import Ledger
from orchestrator.run_folder.ownership import check_owned


def write_tables(ledger: Ledger) -> None:
    """Write every table anew, each atomically.

    Raises:
        OSError: The storage is full, read-only or gone.
    """
    check_owned(ledger.folder)
    for name, rows in table_rows(ledger).items():
        write_table(ledger.folder / f"{name}.parquet", rows)


def table_rows(ledger: Ledger) -> dict[str, list[dict[str, Any]]]:
    """Rows by table; those of later stages only where there are any."""
    trials = ledger.begun
    latencies = [*_by_name(ledger.latencies), *_by_name(ledger.front_latencies)]
    always = {
        "trials": [record.row() for record in trials],
        "front": [record.row() for record in ledger.front()],
        "finalists": [record.row() for record in ledger.finalists],
        "latency": [dict(row) for record in latencies for row in record.rows],
        "curves": [{"id": record.id, **epoch} for record in trials + ledger.finalists for epoch in record.curve],
    }
    later = {
        "analysis": [row for record in _by_name(ledger.analyses) for row in record.rows()],
        "pruning": [record.network.row() for record in _by_name(ledger.prunings)],
        "committees": [] if ledger.committees is None else [row.row() for row in ledger.committees.rows],
    }
    return always | {name: rows for name, rows in later.items() if rows}


def _by_name(records: dict[str, Any]) -> list[Any]:
    return [record for _, record in sorted(records.items())]
