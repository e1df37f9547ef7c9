"""Starts worker processes of a Ray node by forking one that has imported what they need, as `scale.py` asks.

A worker that starts by itself has a copy of all that it imports. One that is forked shares these pages with its
siblings until it writes to them: what is its own shrinks to a fifth, so that hundreds of actors fit into one machine.
In all else it is what Ray starts: `default_worker.py`, with the arguments that the node gives it.

A node runs this in place of Ray's `setup_worker.py` (`setup_worker_path`). The first call of a node leaves a process
behind, the template, which ends with the node; each call asks it for a worker. There is one for each node and job:
Ray's compiled code reads their ids from the environment when it is imported.
"""

from __future__ import annotations

import fcntl
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

FOLDER = "FORKED_WORKER_FOLDER"
"""Environment variable: a private folder for sockets."""
SERVES = "FORKED_WORKER_SOCKET"
"""Environment variable of a template: where it listens."""
IMPORTED = ("ray._private.workers.setup_worker", "ray._private.workers.default_worker", "orchestrator.execution.trial")
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
"""Threads do not survive a fork, so libraries shall not start any when they are imported."""


def ask_for_worker() -> None:
    """Have a worker started with this process's arguments and environment."""
    node, job = (os.environ.get(name, "") for name in ("RAY_RAYLET_PID", "RAY_JOB_ID"))
    path = Path(os.environ[FOLDER]) / f"{node}-{job}"
    with open(path.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            environment = {**os.environ, **ONE_THREAD, SERVES: str(path)}
            subprocess.Popen([sys.executable, __file__], env=environment, start_new_session=True)
        while not path.exists():
            time.sleep(0.02)
    wanted = {"arguments": sys.argv[1:], "environment": dict(os.environ), "folder": str(Path.cwd())}
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        connection.sendall(json.dumps(wanted).encode())
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)  # it is there


def be_template(path: Path) -> None:
    """Fork a worker for each that asks, until the node has gone."""
    with _ids_from_the_system():
        for module in IMPORTED:
            importlib.import_module(module)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # ended workers are no zombies
    node = int(os.environ["RAY_RAYLET_PID"])
    with socket.socket(socket.AF_UNIX) as server:
        unready = path.with_suffix(".new")
        server.bind(str(unready))
        server.listen(1024)
        server.settimeout(1.0)
        unready.rename(path)
        gc.collect()
        gc.freeze()  # a collection in a worker would write to all of these pages
        while _lives(node):
            try:
                connection, _ = server.accept()
            except TimeoutError:
                continue
            with connection:
                connection.setblocking(True)
                wanted = json.load(connection.makefile())
                if os.fork() == 0:
                    server.close()
                    connection.sendall(b"1")
                    connection.close()
                    become_worker(wanted)


def become_worker(wanted: dict[str, Any]) -> NoReturn:
    """Do what `setup_worker.py` would have done, in this process."""
    from ray._private.utils import update_envs
    from ray._private.workers import setup_worker

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    os.environ.clear()
    os.environ.update(wanted["environment"])
    os.chdir(wanted["folder"])
    arguments, sys.argv = setup_worker.parser.parse_known_args(wanted["arguments"])
    context = setup_worker.RuntimeEnvContext.deserialize(arguments.serialized_runtime_env_context or "{}")
    update_envs(context.env_vars)
    runpy.run_path(sys.argv[0], run_name="__main__")
    os._exit(0)


@contextmanager
def _ids_from_the_system() -> Iterator[None]:
    """Leave Ray's own random numbers alone, which remote classes draw their ids from when they are made: workers that
    inherit the same state would draw the same ids of objects, and those of one node crash."""
    from ray import actor

    module: Any = actor
    ours = module.ActorClassID

    class FromTheSystem:
        @staticmethod
        def from_random() -> Any:
            return ours(os.urandom(ours.size()))

    module.ActorClassID = FromTheSystem
    try:
        yield
    finally:
        module.ActorClassID = ours


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


if __name__ == "__main__":
    if (socket_path := os.environ.pop(SERVES, None)) is None:
        ask_for_worker()
    else:
        be_template(Path(socket_path))
