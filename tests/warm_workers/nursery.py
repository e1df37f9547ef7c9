"""Worker processes for the tests' Ray clusters, forked from one that has imported most of what they need: by themselves
they take ten seconds of a slow machine to import torch and Ray, most of what a sweep of the tests takes.

Run as a script by `warm_workers`; `sitecustomize.py` beside it is what asks.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

IMPORTED = (
    "google.protobuf.descriptor_pb2", "jsonschema", "lsmha.analysis", "lsmha.latency.rounds", "lsmha.training.saved",
    "numpy.testing", "optuna", "pandas", "pyarrow.parquet", "requests", "rich.progress", "ruamel.yaml", "torch._dynamo",
)  # fmt: skip
"""Most of what the work of a sweep imports, but Ray itself, which reads its environment when it is imported."""


@contextmanager
def warm_workers(folder: Path) -> Iterator[dict[str, str]]:
    """Variables with which a cluster that is started in the block has warm workers; the folder is for a socket."""
    path = folder / "nursery"
    # A session of its own: what interrupts the tests is left to them.
    with subprocess.Popen(
        [sys.executable, __file__, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    ) as nursery:
        assert nursery.stdout is not None
        assert nursery.stdout.readline() == b"ready\n"
        try:
            yield {"WARM_WORKERS": str(path), "PYTHONPATH": str(Path(__file__).parent)}
        finally:
            nursery.kill()


def _fork_workers(path: str) -> None:
    """Fork a worker for each process that asks at the socket, until standard input ends."""
    for module in IMPORTED:
        importlib.import_module(module)
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen()
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for workers
    os.write(1, b"ready\n")
    while sys.stdin.buffer not in select.select([server, sys.stdin.buffer], [], [])[0]:
        asking, _ = server.accept()
        if os.fork() == 0:
            os.setpgid(0, 0)  # Ray kills a worker's process group
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            server.close()
            _become_worker(asking)
            os._exit(0)
        asking.close()


def _become_worker(asking: socket.socket) -> None:
    """Be what the process at the socket was to be, for as long as that one lives."""
    size, streams, *_ = socket.recv_fds(asking, 8, 3)
    asked = json.loads(asking.makefile("rb").read(int.from_bytes(size, "little")))
    for stream, descriptor in enumerate(streams):
        os.dup2(descriptor, stream)
        os.close(descriptor)
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.setpriority(os.PRIO_PROCESS, 0, asked["priority"])
    signal.pthread_sigmask(signal.SIG_SETMASK, asked["blocked"])
    threading.Thread(target=_end_with, args=(asking,), daemon=True).start()
    sys.argv = asked["arguments"]
    if sys.argv[0].endswith("setup_worker.py"):  # where the worker has an environment of its own
        from ray._private.runtime_env.context import RuntimeEnvContext
        from ray._private.workers import setup_worker

        setup, sys.argv = setup_worker.parser.parse_known_args(sys.argv[1:])
        os.environ.update(RuntimeEnvContext.deserialize(setup.serialized_runtime_env_context or "{}").env_vars)
    runpy.run_path(sys.argv[0], run_name="__main__")


def _end_with(asking: socket.socket) -> None:
    asking.recv(1)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    _fork_workers(sys.argv[1])
