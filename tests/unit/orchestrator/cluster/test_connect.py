"""Which cluster is joined: the one that was named, one that `ray start` left on file and that answers, or none."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("address", ["10.0.0.9:6379", "http://127.0.0.1:8265", "nowhere"])
def test_where_nothing_answers_is_told(address: str, running: set[str]) -> None:
    with pytest.raises(UserError, match=r"^--address: must be host:port of a running Ray cluster, but nothing answers"):
        connect._address(address)
