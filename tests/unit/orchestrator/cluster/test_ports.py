"""Ports for servers that bind them later: not those that the system gives to connections."""

from __future__ import annotations

import socket
from itertools import islice

import pytest

from orchestrator.cluster import ports
from orchestrator.cluster.ports import ports_to_listen_on


def test_they_are_free_and_none_is_given_twice() -> None:
    found = [*ports_to_listen_on(3), *ports_to_listen_on(4)]
    assert len(set(found)) == 7
    assert set(found) <= set(ports.RANGE)
    for port in found:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", port))


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
def test_one_that_is_taken_is_passed_over(address: str) -> None:
    process = 1234  # none that asks meanwhile
    (first,) = islice(ports._free(process), 1)
    ports._free.cache_clear()
    with socket.socket() as listener:
        listener.bind((address, first))
        listener.listen()
        assert next(ports._free(process)) > first
    ports._free.cache_clear()


def test_processes_begin_apart() -> None:
    assert not set(islice(ports._free(4000), 4)) & set(islice(ports._free(4001), 4))
