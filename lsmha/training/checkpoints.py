"""The state of an unfinished training run on disk: the newest, and the one before in case that is damaged."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from lsmha.errors import DamagedFileError
from lsmha.io.checksums import CHECKSUM_PLACEHOLDER, read_checked, write_checked
from lsmha.io.paths import RunPath, is_remote
from lsmha.legacy import of_today

_HEADER = f"{CHECKSUM_PLACEHOLDER}\n".encode()


class LoadedState(NamedTuple):
    """A state, and the newer files that were passed over, being damaged."""

    state: dict[str, Any]
    damaged: list[RunPath]


def checkpoint_files(path: RunPath) -> tuple[RunPath, RunPath]:
    """The files of a checkpoint, newest first: `path` and `<stem>.previous<suffix>` beside it."""
    return path, path.with_name(f"{path.stem}.previous{path.suffix}")


def remove_checkpoint(path: RunPath) -> None:
    """Remove all files of a checkpoint that there are."""
    for file in checkpoint_files(path):
        file.unlink(missing_ok=True)


def save_state(state: dict[str, Any], path: RunPath) -> None:
    """Write a state atomically; the one that was at `path`, unless damaged, becomes the previous one.

    Raises:
        OSError: The storage is full, read-only or gone; what was saved before stays.
    """
    buffer = io.BytesIO()
    torch.save(_compact(state), buffer)
    newest, previous = checkpoint_files(path)
    # A damaged file must not take the place of a good one: that would leave none until the next state is written. An
    # object store checks its objects itself, and reading one back each epoch takes as long as writing it.
    keep = is_remote(newest) or _is_good(newest)
    write_checked(newest, _HEADER + buffer.getvalue(), previous=previous if keep else None)


def load_state(path: RunPath, *, map_location: torch.device | str) -> LoadedState:
    """The newest good state at `path`. Runs no code that may be in the file.

    Raises:
        FileNotFoundError: There is no checkpoint.
        DamagedFileError: Each file that there is is damaged.
    """
    damaged: list[RunPath] = []
    for state in good_states(path, map_location=map_location, damaged=damaged):
        return LoadedState(state, damaged)
    if damaged:
        raise DamagedFileError(f"no good checkpoint is left: damaged are {', '.join(map(str, damaged))}")
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))


def good_states(path: RunPath, *, map_location: torch.device | str, damaged: list[RunPath]) -> Iterator[dict[str, Any]]:
    """The good states at `path`, newest first; damaged files are appended to `damaged`. Runs no code that may be in
    a file."""
    for file in checkpoint_files(path):
        try:
            content = read_checked(file)
        except FileNotFoundError:
            continue
        except DamagedFileError:
            damaged.append(file)
            continue
        stream = io.BytesIO(content[len(_HEADER) :])
        state = torch.load(stream, map_location=map_location, weights_only=True)
        yield {**state, **{name: of_today(state[name]) for name in ("recipe", "plan") if name in state}}


def _compact(state: Any) -> Any:
    """The state with views of larger tensors as tensors of their own: a view is saved with all that it is a view of."""
    if isinstance(state, dict):
        return {key: _compact(value) for key, value in state.items()}
    if isinstance(state, torch.Tensor) and state.untyped_storage().nbytes() > state.nbytes:
        return state.clone()
    return state


def _is_good(file: RunPath) -> bool:
    try:
        read_checked(file)
    except (FileNotFoundError, DamagedFileError):
        return False
    return True
