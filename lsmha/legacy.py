"""Names in files of earlier versions, and what they are called today: what was written before stays readable.

Files hold plain values, as JSON does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RENAMED_KEYS = {
    # 0.2
    "num_unrecognised_labels": "num_unrecognized_labels",
    "sentinel_ms": "reference_ms",
}
"""What fields and columns are called, by the name that earlier versions had."""

_RENAMED_KERNELS = {"materialised": "materialized"}
"""Likewise values of fields that name an attention kernel."""


def of_today(content: Any, keys: Mapping[str, str] = RENAMED_KEYS) -> Any:
    """Plain values of any version by the names of today, however deep they are nested."""
    return _renamed(content, keys, _RENAMED_KERNELS)


def as_first_named(content: Any) -> Any:
    """Plain values by the names that the first version had: what is hashed, so that old hashes stay valid."""
    kernels = {today: before for before, today in _RENAMED_KERNELS.items()}
    return _renamed(content, {today: before for before, today in RENAMED_KEYS.items()}, kernels)


def _renamed(content: Any, keys: Mapping[str, str], kernels: Mapping[str, str], *, is_kernel: bool = False) -> Any:
    if isinstance(content, dict):
        return {
            keys.get(key, key): _renamed(value, keys, kernels, is_kernel=key.endswith("attention"))
            for key, value in content.items()
        }
    if isinstance(content, list):
        return [_renamed(value, keys, kernels, is_kernel=is_kernel) for value in content]
    return kernels.get(content, content) if is_kernel and isinstance(content, str) else content
