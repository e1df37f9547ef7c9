"""What a local cluster keeps outside the run folder: sockets, logs and the token, in folders of this user alone."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from orchestrator.errors import UserError

LONGEST_SOCKET = 107
"""Characters that Linux allows the name of a Unix socket to have (`sun_path`, unix(7))."""
_DEEPEST = "/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
"""What Ray puts below its folder."""
LONGEST_FOLDER = LONGEST_SOCKET - len(_DEEPEST)


def ray_folder() -> Path:
    """Ray's folder for a local cluster, of this user alone: it lets all users into its own, so it gets a parent.

    Below TMPDIR, or, where that is too long a name for sockets or cannot be written, in /tmp or /var/tmp. RAY_TMPDIR is
    taken as it is.

    Raises:
        UserError: There is no such place.
    """
    if given := os.environ.get("RAY_TMPDIR"):
        folder = Path(given).absolute() / "ray"
        if len(str(folder)) > LONGEST_FOLDER:
            raise UserError(f"RAY_TMPDIR: must have at most {LONGEST_FOLDER - 4} characters, but got {given!r}")
        return folder
    for place in _places():
        folder = place / f"lsmha-{os.getuid()}" / "ray"
        if len(str(folder)) <= LONGEST_FOLDER and (parent := _own(folder.parent)) is not None:
            return parent / "ray"
    raise UserError(
        f"TMPDIR: must be a folder that can be written, with a name of at most {LONGEST_FOLDER - 20} characters, but "
        f"got {os.environ.get('TMPDIR')!r}, and neither /tmp nor /var/tmp is one"
    )


def make_token(folder: Path) -> None:
    """Have the token that local clusters ask for before Ray does, which lets other users read its own.

    Where there is no home folder that can be written, it is kept in another one.

    Args:
        folder: That one.

    Raises:
        UserError: RAY_AUTH_TOKEN_PATH cannot be written.
    """
    if os.environ.get("RAY_AUTH_MODE") == "disabled" or "RAY_AUTH_TOKEN" in os.environ:
        return
    if given := os.environ.get("RAY_AUTH_TOKEN_PATH"):
        try:
            _make_token(Path(given))
        except OSError as error:
            raise UserError(f"RAY_AUTH_TOKEN_PATH: {given} cannot be written: {error.strerror}") from None
        return
    try:
        _make_token(Path.home() / ".ray" / "auth_token")
    except (OSError, RuntimeError):  # no home, or none of one's own, as for users that a container makes up
        file = folder / "auth_token"
        _make_token(file)
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(file)


def _places() -> Iterator[Path]:
    with suppress(OSError):  # none that it knows can be written
        yield Path(tempfile.gettempdir()).absolute()
    yield from (Path("/tmp"), Path("/var/tmp"))


def _own(folder: Path) -> Path | None:
    """A folder that only this user can look into: this one, or where it is somebody else's, a new one beside it."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.is_symlink() or folder.stat().st_uid != os.getuid():
            folder = Path(tempfile.mkdtemp(prefix="lsmha-", dir=folder.parent))
        folder.chmod(0o700)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError:
        return None


def _make_token(file: Path) -> None:
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        if file.stat().st_uid == os.getuid():
            file.chmod(0o600)
        with file.open("rb"):  # Ray has to read it
            return
    with open(descriptor, "w") as opened:
        opened.write(secrets.token_hex(32))
