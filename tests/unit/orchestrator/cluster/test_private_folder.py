"""Where a local cluster keeps sockets and its token, on machines of every kind."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

import pytest

from orchestrator.cluster.private_folder import LONGEST_FOLDER, make_token, ray_folder
from orchestrator.errors import UserError


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_TMPDIR", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(tempfile, "tempdir", None)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary folder with a short name, as that of the tests is not."""
    folder = Path(tempfile.mkdtemp(prefix="s", dir="/tmp"))
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_it_is_private_and_below_tmpdir(short: Path) -> None:
    folder = ray_folder()
    assert folder == short / f"lsmha-{os.getuid()}" / "ray"
    assert mode(folder.parent) == 0o700
    folder.parent.chmod(0o777)
    assert mode(ray_folder().parent) == 0o700


@pytest.mark.parametrize("kind", ["long", "absent", "a file"])
def test_a_tmpdir_that_is_no_use(monkeypatch: pytest.MonkeyPatch, short: Path, kind: str) -> None:
    place = short / ("a" * 40 if kind == "long" else kind)
    if kind == "long":
        place.mkdir()
    elif kind == "a file":
        place.write_text("")
    monkeypatch.setenv("TMPDIR", str(place))
    folder = ray_folder()
    assert folder == Path("/tmp") / f"lsmha-{os.getuid()}" / "ray"
    assert len(str(folder)) <= LONGEST_FOLDER
    if kind == "long":
        assert list(place.iterdir()) == []


def test_somebody_else_was_there_first(short: Path) -> None:
    elsewhere = short / "elsewhere"
    elsewhere.mkdir()
    (short / f"lsmha-{os.getuid()}").symlink_to(elsewhere)
    folder = ray_folder()
    assert folder.parent.name.startswith("lsmha-")
    assert not folder.parent.is_symlink()
    assert list(elsewhere.iterdir()) == []


def test_ray_tmpdir_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch, short: Path) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(short))
    assert ray_folder() == short / "ray"
    monkeypatch.setenv("RAY_TMPDIR", str(short / ("a" * 40)))
    with pytest.raises(UserError, match=r"RAY_TMPDIR: must have at most \d+ characters, but got '.*aaa'"):
        ray_folder()


def test_the_token_lies_at_home(monkeypatch: pytest.MonkeyPatch, short: Path) -> None:
    monkeypatch.setenv("HOME", str(short / "home"))
    make_token(short)
    token = short / "home" / ".ray" / "auth_token"
    assert mode(token) == 0o600
    before = token.read_text()
    assert len(before) == 64
    token.chmod(0o644)
    make_token(short)
    assert (mode(token), token.read_text()) == (0o600, before)
    assert "RAY_AUTH_TOKEN_PATH" not in os.environ


@pytest.mark.parametrize("kind", ["none", "a file", "/proc/nohome"])
def test_no_home_for_the_token(monkeypatch: pytest.MonkeyPatch, short: Path, kind: str) -> None:
    if kind == "none":
        monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    elif kind == "a file":
        (short / "home").write_text("")
        monkeypatch.setenv("HOME", str(short / "home"))
    else:
        monkeypatch.setenv("HOME", kind)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "")
    make_token(short)
    assert os.environ["RAY_AUTH_TOKEN_PATH"] == str(short / "auth_token")
    assert mode(short / "auth_token") == 0o600


def test_a_token_path_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, short: Path) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/proc/no/token")
    with pytest.raises(UserError, match=r"RAY_AUTH_TOKEN_PATH: /proc/no/token cannot be written"):
        make_token(short)


@pytest.mark.parametrize(("variable", "value"), [("RAY_AUTH_MODE", "disabled"), ("RAY_AUTH_TOKEN", "secret")])
def test_no_token_is_made_where_none_is_needed(
    monkeypatch: pytest.MonkeyPatch, short: Path, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    monkeypatch.setenv("HOME", str(short / "home"))
    make_token(short)
    assert not (short / "home").exists()
