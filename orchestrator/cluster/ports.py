"""Ports for servers that are told where to listen, some time before they do."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from functools import cache
from itertools import cycle, islice

RANGE = range(20_000, 32_768)
"""Below the ports that Linux, macOS and Windows give to connections, and above those of Ray's workers: a port of the
system's choice, free when it was looked for, is any program's as soon as it is let go."""
APART = 8
"""How far from another, in ports, two processes of successive numbers begin to look."""


def ports_to_listen_on(count: int) -> list[int]:
    """Ports of any address that nothing listens on; no two calls of a process have one in common."""
    return list(islice(_free(os.getpid()), count))


@cache
def _free(process: int) -> Iterator[int]:
    begin = process * APART % len(RANGE)
    return filter(_is_free, cycle([*RANGE[begin:], *RANGE[:begin]]))


def _is_free(port: int) -> bool:
    with socket.socket() as listener:
        try:
            listener.bind(("", port))
        except OSError:
            return False
        return True
