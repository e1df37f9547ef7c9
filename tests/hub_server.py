"""The Hugging Face hub on this machine: as much of it as reading files of data sets takes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any, NoReturn
from urllib.parse import unquote

from flask import Flask, Response, abort, jsonify, request, send_file
from werkzeug.serving import make_server

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def hub(root: Path) -> Iterator[str]:
    """Serve data sets, the folders `root/REVISION/USER/NAME`; gives the address."""
    server = make_server("127.0.0.1", 0, _application(root), threaded=True)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.port}"
    finally:
        server.shutdown()
        thread.join()


def _application(root: Path) -> Flask:
    application = Flask("hub")

    def folder(name: str, revision: str) -> Path:
        found = root / unquote(revision).replace("/", "~") / name
        if not found.is_dir():
            _say_missing("RepoNotFound")
        return found

    def entry(repository: Path, path: Path) -> dict[str, Any]:
        name = path.relative_to(repository).as_posix()
        if path.is_dir():
            return {"type": "directory", "oid": COMMIT, "size": 0, "path": name}
        return {"type": "file", "oid": _digest(path), "size": path.stat().st_size, "path": name}

    @application.get("/api/datasets/<user>/<name>")
    @application.get("/api/datasets/<user>/<name>/revision/<path:revision>")
    def repository(user: str, name: str, revision: str = "main") -> Response:
        folder(f"{user}/{name}", revision)
        return jsonify(id=f"{user}/{name}", sha=COMMIT, private=False, disabled=False, tags=[], siblings=[])

    @application.get("/api/datasets/<user>/<name>/tree/<path:rest>")
    def tree(user: str, name: str, rest: str) -> Response:
        revision, path = _split(rest)
        repository = folder(f"{user}/{name}", revision)
        below = repository / path
        if not below.is_dir():
            _say_missing("EntryNotFound")
        found = below.rglob("*") if request.args.get("recursive", "").lower() == "true" else below.iterdir()
        return jsonify([entry(repository, path) for path in sorted(found)])

    @application.post("/api/datasets/<user>/<name>/paths-info/<path:revision>")
    def paths_info(user: str, name: str, revision: str) -> Response:
        repository = folder(f"{user}/{name}", revision)
        asked = (request.get_json(silent=True) or request.form.to_dict(flat=False))["paths"]
        there = [repository / path for path in asked]
        return jsonify([entry(repository, path) for path in there if path.exists()])

    @application.get("/datasets/<user>/<name>/resolve/<path:rest>")
    def resolve(user: str, name: str, rest: str) -> Response:
        revision, path = _split(rest)
        file = folder(f"{user}/{name}", revision) / path
        response = send_file(file, conditional=True)
        response.headers["X-Repo-Commit"], response.headers["ETag"] = COMMIT, f'"{_digest(file)}"'
        return response

    return application


def _say_missing(code: str) -> NoReturn:
    """Answer as the hub does where something is not there."""
    response = jsonify(error="not found")
    response.status_code, response.headers["X-Error-Code"] = 404, code
    abort(response)


def _split(rest: str) -> tuple[str, str]:
    """The revision at the beginning, which may have slashes itself, and the path behind it."""
    parts = rest.split("/")
    long = 3 if parts[0] == "refs" else 1
    return "/".join(parts[:long]), "/".join(parts[long:])


def _digest(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()
