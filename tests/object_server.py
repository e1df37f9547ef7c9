"""An object store on this machine, for sweeps in processes of their own."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

from moto.backends import get_backend
from moto.server import ThreadedMotoServer

from lsmha.io.paths import path_of

BUCKET = "sweeps"


class ObjectServer:
    """S3 on a port of its own, with one bucket. What it holds outlives `stop` and `start`."""

    def __init__(self, address: str = "127.0.0.1") -> None:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line a request
        self._address, self._port = address, 0
        self.start()
        host, self._port = self._server.get_host_and_port()
        self._backend.create_bucket(BUCKET, "us-east-1")
        self.environment = {
            "AWS_ENDPOINT_URL": f"http://{host}:{self._port}",
            "AWS_ACCESS_KEY_ID": "tests",
            "AWS_SECRET_ACCESS_KEY": "tests",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_MAX_ATTEMPTS": "2",  # a server that is gone is told within a second
        }

    @property
    def _backend(self) -> Any:
        return get_backend("s3")["123456789012"]["aws"]

    def stop(self) -> None:
        self._is_lost = lambda: True  # connections outlive the server that accepted them
        self._server.stop()
        server = self._server._server
        assert server is not None
        server.server_close()  # else the port is free only when nothing refers to the server any more

    def start(self) -> None:
        self._is_lost: Callable[[], bool] = lambda: False
        self._server = ThreadedMotoServer(ip_address=self._address, port=self._port, verbose=False)
        self._server.start()
        server = self._server._server
        assert server is not None
        server.app = self._unless_lost(server.app)

    def lose_with(self, folder: str, count: int) -> None:
        """Answer nobody, until the next `start`, from the moment when so many objects are below a folder."""
        self._is_lost = lambda: len(self.names(folder)) >= count

    def _unless_lost(self, application: Callable[..., Iterable[bytes]]) -> Callable[..., Iterable[bytes]]:
        def answer(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            if self._is_lost():
                environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            return application(environ, start_response)

        return answer

    def names(self, folder: str) -> list[str]:
        """Keys below a folder, without going through the server."""
        keys = self._backend.get_bucket(BUCKET).keys
        return sorted(key.removeprefix(f"{folder}/") for key in keys if key.startswith(f"{folder}/"))

    def age(self, key: str, seconds: float) -> None:
        """Let an object be that much older."""
        stored = self._backend.get_bucket(BUCKET).keys[key]
        stored.last_modified -= timedelta(seconds=seconds)

    def download(self, folder: str, target: Path) -> Path:
        """Copy a folder to disk."""
        source = path_of(f"s3://{BUCKET}/{folder}")
        for file in source.rglob("*"):
            copy = target / file.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(file.read_bytes())
        return target
