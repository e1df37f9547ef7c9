"""Which cluster is joined: the one that was named, one that `ray start` left on file and that answers, or none."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Collection
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from ray._private.utils import check_version_info, compute_version_info

from orchestrator.cluster import connect
from orchestrator.errors import UserError


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Folders that Ray's command leaves an address in, by the variable that names them; none has one yet."""
    found = {}
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for variable in ("RAY_TMPDIR", "TMPDIR"):
        found[variable] = tmp_path / variable
        (found[variable] / "ray").mkdir(parents=True)
        monkeypatch.setenv(variable, str(found[variable]))
    return found


@pytest.fixture
def running(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Addresses at which a cluster answers; a test adds to them."""
    running: set[str] = set()
    monkeypatch.setattr(connect, "answers", lambda address: address in running)
    return running


def left(place: Path, address: str) -> None:
    (place / "ray" / "ray_current_cluster").write_text(address)


@pytest.mark.parametrize("variable", ["RAY_TMPDIR", "TMPDIR"])
@pytest.mark.parametrize("asked", [None, "auto"])
def test_what_ray_start_started_is_found(
    asked: str | None, variable: str, places: dict[str, Path], running: set[str]
) -> None:
    running.add("10.0.0.1:6379")
    left(places[variable], "10.0.0.1:6379\n")
    assert connect._address(asked) == "10.0.0.1:6379"


def test_one_that_has_crashed_is_passed_over(places: dict[str, Path], running: set[str]) -> None:
    left(places["RAY_TMPDIR"], "10.0.0.1:6379")
    assert connect._address(None) == "local"
    running.add("10.0.0.2:6379")
    left(places["TMPDIR"], "10.0.0.2:6379")
    assert connect._address(None) == "10.0.0.2:6379"


def test_a_file_that_is_no_text_is_passed_over(places: dict[str, Path], running: set[str]) -> None:
    (places["RAY_TMPDIR"] / "ray" / "ray_current_cluster").write_bytes(b"\xff\xfe")
    assert connect._address(None) == "local"


@pytest.mark.parametrize("by", ["option", "environment"])
@pytest.mark.parametrize("others", [(), ("10.0.0.1:6379",)], ids=["none", "another sweep's"])
def test_auto_is_no_cluster_of_another_sweep(
    by: str, others: Collection[str], running: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    running.update(others)
    if by == "environment":
        monkeypatch.setenv("RAY_ADDRESS", "auto")
    name = {"option": "--address", "environment": "RAY_ADDRESS"}[by]
    with pytest.raises(UserError, match=rf"^{name}: auto needs a Ray cluster that `ray start --head` started here"):
        connect._address("auto" if by == "option" else None)


@pytest.mark.parametrize("address", ["10.0.0.9:6379", "127.0.0.1:99999", "nowhere"])
def test_where_nothing_answers_is_told(address: str, running: set[str]) -> None:
    with pytest.raises(UserError, match=r"^--address: must be host:port of a running Ray cluster, but nothing answers"):
        connect._address(address)


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "ray://10.0.0.1:10001"])
def test_addresses_of_other_doors_are_refused(address: str, running: set[str]) -> None:
    with pytest.raises(UserError, match=rf"^--address: must be host:port of .*, but is '{address}'"):
        connect._address(address)


def test_a_dashboard_is_not_taken_for_ray() -> None:
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(UserError, match=r"^--address: .* web pages are served at '127\.0\.0\.1:\d+'"):
            connect._address(f"127.0.0.1:{server.server_port}")
        server.shutdown()


def test_what_speaks_no_http_is_left_to_ray() -> None:
    with socketserver.TCPServer(("127.0.0.1", 0), socketserver.BaseRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"127.0.0.1:{server.server_address[1]}"
        assert connect._address(address) == address
        server.shutdown()


HERE = dict(zip(("ray_version", "python_version"), compute_version_info(), strict=True))


@pytest.mark.parametrize(
    "there",
    [{"ray_version": "2.1.0"}, {"python_version": "3.9.1"}, {"ray_version": "2.1.0", "python_version": "3.9.1"}],
    ids=["Ray", "Python", "both"],
)
def test_other_versions_are_told_in_one_line_with_both(there: dict[str, str]) -> None:
    there = {**HERE, **there}
    with pytest.raises(RuntimeError) as refused:
        check_version_info(there, "node 10.0.0.1")
    reason = connect._reason(refused.value, "10.0.0.1:6379")
    assert "\n" not in reason
    for versions in (there, HERE):
        assert f"Ray: {versions['ray_version']} Python: {versions['python_version']}" in reason
