"""The weights in a checkpoint of somebody else's, whatever they are wrapped in; no code in it is run."""

from __future__ import annotations

import argparse
import io
import types
from collections.abc import Iterator, Mapping
from pathlib import PosixPath
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from lsmha.errors import ConfigurationError
from lsmha.io.paths import RunPath, is_remote
from lsmha.progress import OnNote

AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")
"""Where training scripts keep averages of weights, which are what they evaluate and publish."""
WRAPPED = ("state_dict", "model_state_dict", "model", "network", "net", "weights", "module")
"""Where they keep the weights."""
_SCALAR: Any = np.float64(0).__reduce__()[0]
RECORDS: tuple[Any, ...] = (
    argparse.Namespace,
    types.SimpleNamespace,
    PosixPath,
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("f8", "f4", "i8", "i4", "?")),
    (_SCALAR, "numpy.core.multiarray.scalar"),  # by its names in NumPy 1 and 2
    (_SCALAR, "numpy._core.multiarray.scalar"),
)
"""Plain records beside them, such as `args` and the best accuracy: to make one runs no code of the checkpoint's."""


def read_weights(path: RunPath, *, on_note: OnNote) -> dict[str, Tensor]:
    """The state dict in a file of torch or safetensors.

    Averages of weights are taken before the weights themselves.

    Args:
        path: Of the file.
        on_note: Told which of several state dicts was taken.

    Raises:
        ConfigurationError: It cannot be read, holds more than weights and plain records, or no state dict.
    """
    content = _read(path)
    found = dict(_state_dicts(content))
    if not found:
        held = ", ".join(map(str, list(content)[:10])) if isinstance(content, Mapping) else type(content).__name__
        raise ConfigurationError(f"{path} must hold a state_dict, but it holds {held or 'nothing'}")
    name = next(iter(found))
    if len(found) > 1:
        on_note(f"{path}: took the weights of {name}; it also has those of {', '.join(list(found)[1:])}")
    return found[name]


def _state_dicts(content: Any, name: str = "", depth: int = 0) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """All of them by where they are, averages first."""
    if not isinstance(content, Mapping) or depth > 3:
        return
    if content and all(isinstance(key, str) and _is_dense(value) for key, value in content.items()):
        yield name or "the file", dict(content)
        return
    for key in (*AVERAGED, *WRAPPED):
        if key in content:
            yield from _state_dicts(content[key], f"{name}.{key}" if name else key, depth + 1)


def _is_dense(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_quantized


def _read(path: RunPath) -> Any:
    try:
        if path.suffix == ".safetensors":
            return load(path.read_bytes())
        source = io.BytesIO(path.read_bytes()) if is_remote(path) else str(path)
        with torch.serialization.safe_globals(list(RECORDS)):
            return torch.load(source, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror or error}") from None
    except SafetensorError as error:
        raise ConfigurationError(f"{path} must be a file of safetensors: {' '.join(str(error).split())}") from None
    except Exception as error:  # whatever a file that is no checkpoint makes of the unpickler
        raise ConfigurationError(f"{path} must be weights, as torch.save writes them: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    """What is in the way, in one line; torch's own has many, with terminal codes."""
    text = str(error)
    for before in ("Unsupported global: GLOBAL ", "Unsupported class ", "Trying to instantiate unsupported class "):
        if before in text:
            culprit = text.split(before, 1)[1].split()[0]
            return f"it also holds a {culprit}, which may run code; save its state_dict alone"
    told = text.rpartition("WeightsUnpickler error:")[2].strip()  # after advice that is not for our users
    return " ".join(told.split("\n", 1)[0].split()) or type(error).__name__
