"""Runs of earlier versions: what they call otherwise, in the words of today."""

from __future__ import annotations

from typing import Any

from lsmha.legacy import RENAMED_KEYS, of_today
from orchestrator.config.sweep import RENAMED_SETTINGS

_KINDS = {"waves": "batches", "origin": "fingerprint"}

_KEYS = RENAMED_KEYS | {
    "queued": "enqueued",
    **{before.rpartition(".")[2]: today.rpartition(".")[2] for before, today in RENAMED_SETTINGS.items()},
}


def kind_of_today(kind: str) -> str:
    """What a kind of records is called."""
    return _KINDS.get(kind, kind)


def content_of_today(content: Any) -> Any:
    """The content of a record, or the settings of a run, by the names of today."""
    return of_today(content, _KEYS)
