"""Errors of the storage are told from others, wherever Ray has put them."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import ray

from orchestrator.storage_errors import (
    StorageError,
    describe_storage_error,
    storage_error_in,
    translate_storage_errors,
)


def full(path: str = "/run/x") -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)


def from_task(error: Exception) -> BaseException:
    """As `ray.get` raises what a task raised."""
    return ray.exceptions.RayTaskError("task", "Traceback ...", error).as_instanceof_cause()


def chained(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error",
    [
        full(),
        OSError(errno.EROFS, "Read-only file system"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        OSError(errno.EIO, "Input/output error"),
        OSError(errno.ESTALE, "Stale file handle"),
        PermissionError(errno.EACCES, "Permission denied"),
        FileNotFoundError(errno.ENOENT, "No such file or directory"),
        NotADirectoryError(errno.ENOTDIR, "Not a directory"),
    ],
    ids=lambda error: errno.errorcode[error.errno],
)
def test_storage_errors_are_found_behind_whatever_hides_them(error: OSError) -> None:
    hidden = [
        error,
        from_task(error),
        ray.exceptions.RayTaskError("task", "Traceback ...", error),
        from_task(from_task(error)),
        chained(RuntimeError("writing failed"), error),
        from_task(chained(RuntimeError("writing failed"), error)),
        chained(ValueError("a"), chained(KeyError("b"), from_task(error))),
    ]
    for wrapped in hidden:
        found = storage_error_in(wrapped)
        assert found is not None, repr(wrapped)
        assert (found.errno, found.strerror) == (error.errno, error.strerror)


@pytest.mark.parametrize(
    "error",
    [
        None,
        RuntimeError("no space left on device"),
        ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"),
        ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
        BrokenPipeError(errno.EPIPE, "Broken pipe"),
        TimeoutError(errno.ETIMEDOUT, "Connection timed out"),
        OSError(errno.EADDRINUSE, "Address already in use"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        OSError("no number"),
        ray.exceptions.RayActorError(),
        ray.exceptions.WorkerCrashedError(),
        KeyError("x"),
    ],
    ids=repr,
)
def test_other_errors_are_none(error: Exception | None) -> None:
    assert storage_error_in(error) is None
    if error is not None:
        assert storage_error_in(from_task(error)) is None
        assert storage_error_in(chained(RuntimeError(), error)) is None
        with pytest.raises(type(error)) as raised, translate_storage_errors("advice"):
            raise error
        assert raised.value is error


def test_an_error_that_was_only_being_handled_is_not_the_cause() -> None:
    error = KeyError("another one")
    error.__context__ = full()
    assert storage_error_in(error) is None


def test_one_line_with_the_file_and_what_to_do() -> None:
    with pytest.raises(StorageError) as raised, translate_storage_errors("free some, then go on"):
        raise from_task(full("/run/records/t0001.json"))
    assert str(raised.value) == "/run/records/t0001.json: No space left on device; free some, then go on"
    assert raised.value.exit_code == 3
    assert describe_storage_error(OSError(errno.EIO, "Input/output error")) == "Input/output error"


def test_a_real_one(tmp_path: Path) -> None:
    path = tmp_path / "gone" / "x"
    with (
        pytest.raises(StorageError, match=r"gone/x: No such file or directory; advice"),
        translate_storage_errors("advice"),
    ):
        path.write_text("x")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1)])
def test_what_ends_the_process_passes(error: BaseException) -> None:
    with pytest.raises(type(error)), translate_storage_errors("advice"):
        raise error
