"""Damaged and odd data sets and checkpoints: read, or refused in one line."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from fuzz_inputs import bounded, tried

CASES = 1000


def test_each_is_read_or_refused_in_one_line() -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=bounded) as pool:
        found = Counter(pool.map(tried, range(CASES), chunksize=50))
    assert found.keys() == {"read", "refused"}, found
    assert min(found.values()) > CASES / 10
