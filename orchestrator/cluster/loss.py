"""A cluster that is lost under a running command: one line and an exit code, instead of Ray's minutes and traceback."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

import ray

from orchestrator.errors import ExitCode
from orchestrator.process_exit import end_process

HEAD_PATIENCE_S = 20.0
"""How long the head may be silent: networks hiccup. Ray itself ends the process, from compiled code, after a minute."""

OWN_PATIENCE_S = 4.0
"""How long this machine's own part may be. Ray ends the process after a quarter of a minute."""


@contextmanager
def exit_on_cluster_loss(advice: str, *, when_lost: Callable[[], None] = lambda: None) -> Iterator[None]:
    """End the process should the cluster be lost while the block runs, which may wait in Ray's compiled code by then.

    `when_lost` is called before that, once, in another thread; `advice` ends the line on standard error.
    """
    context = ray.get_runtime_context()
    head = context.gcs_address
    node = next(node for node in ray.nodes() if node["NodeID"] == context.get_node_id())
    own = f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}"
    message = f"the Ray cluster at {head} is lost: %s; {advice}"
    over, telling = threading.Event(), threading.Lock()

    def loss(*, own_patience_s: float, head_patience_s: float) -> str | None:
        """What does not answer, and did not for as long as that."""
        began = time.monotonic()
        while not over.is_set():
            if not answers(own):
                what, patience_s = "Ray has ended on this machine", own_patience_s
            elif not answers(head):
                what, patience_s = "its head does not answer", head_patience_s
            else:
                return None
            if time.monotonic() - began >= patience_s:
                return what
            over.wait(0.5)
        return None

    def end(what: str) -> NoReturn:
        with telling:  # never given back: the process ends
            end_process(ExitCode.CLUSTER_LOST, message % what, last_work=when_lost)

    def watch() -> None:
        while not over.wait(1.0):
            what = loss(own_patience_s=OWN_PATIENCE_S, head_patience_s=HEAD_PATIENCE_S)
            if what is not None:
                end(what)

    threading.Thread(target=watch, name="cluster loss", daemon=True).start()
    try:
        yield
    except Exception:
        # Ray's errors of a lost cluster are many and seldom say so; whether it is lost can be seen.
        what = loss(own_patience_s=1.0, head_patience_s=1.0)
        if what is None:
            raise
        # Not by an exception: on its way out Ray would wait for the cluster to take its leave.
        end(what)
    finally:
        over.set()


def answers(address: str) -> bool:
    """Whether something listens at `host:port`; nothing does where it reads otherwise. Ray itself tries for minutes."""
    try:
        with connection_to(address):
            return True
    except (OSError, OverflowError, ValueError):
        return False


def connection_to(address: str) -> socket.socket:
    """A connection to `host:port`, which waits for three seconds at most.

    Raises:
        OSError: Nothing listens there.
        OverflowError, ValueError: It is no address.
    """
    host, _, port = address.rpartition(":")
    if not port.isdecimal():
        raise ValueError(f"{address!r} has no port")
    return socket.create_connection((host.strip("[]"), int(port)), timeout=3)
