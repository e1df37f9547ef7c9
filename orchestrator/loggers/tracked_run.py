"""A training run, or the sweep itself, as Ray's logger callbacks know a trial of Ray Tune."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from lsmha.config import ModelConfig, TrainConfig
from lsmha.io.paths import RunPath

Scalar = bool | int | float | str


@dataclass(frozen=True)
class LoggedSweep:
    """The sweep whose runs are logged."""

    id: str
    """Hex digits: another one for each run folder, the same in all sessions."""
    name: str
    folder: RunPath
    left_behind: threading.Event = field(default_factory=threading.Event, compare=False)
    """Set once the session no longer waits for the logger: it raises instead of waiting for anything."""


@dataclass(eq=False)
class TrackedRun:
    """What Ray's logger callbacks ask of a trial, and no more.

    A trial of Ray Tune is one attempt here, maybe of several training runs at once, so it cannot be shown to them.
    """

    sweep: LoggedSweep
    name: str
    """`t0007`, `t0007-s1`, or `sweep`."""
    config: Mapping[str, Scalar]
    logged: int = 0
    """The last step that earlier sessions have logged; 0 for none."""
    local_path: str = ""
    """Its folder, where a logger needs one."""
    checkpoint: None = field(default=None, init=False)

    @property
    def trial_id(self) -> str:
        """An id like no other run's of any sweep."""
        return f"{self.sweep.id}-{self.name}"

    @property
    def evaluated_params(self) -> Mapping[str, Scalar]:
        """What TensorBoard compares runs by."""
        return self.config

    @property
    def experiment_dir_name(self) -> str:
        """What W&B groups runs by."""
        return f"{self.sweep.name}-{self.sweep.id[:8]}"

    def init_local_path(self) -> None:
        """Make its folder."""
        Path(self.local_path).mkdir(parents=True, exist_ok=True)

    def __str__(self) -> str:
        return self.name


class RunLogger(Protocol):
    """A logger callback of Ray, with what a sweep needs besides. Whatever it raises ends its work in this session.

    Each `trial` is a `TrackedRun`, where Ray's annotations say `Trial`.

    What a run logged up to `TrackedRun.logged` is there already; a step beyond may be there, too, if the session was
    killed before it could take note of that, and must not come twice.
    """

    def setup(self) -> None: ...
    def log_trial_start(self, trial: Any, /) -> None: ...
    def log_trial_result(self, iteration: int, trial: Any, result: dict[str, Any], /) -> None: ...
    def log_trial_end(self, trial: Any, failed: bool = False) -> None: ...
    def on_experiment_end(self, trials: list[Any], /) -> None: ...

    def log_front(self, step: int, trial: Any, png: bytes, /) -> None:
        """Show the plot of the front."""

    def leave(self, trial: Any, /) -> None:
        """The run pauses, or the session ends before it does; it may be started again soon."""


def hyperparameters(trial: str, model: ModelConfig, train: TrainConfig) -> dict[str, Scalar]:
    """All settings of a training run by name, without those that are None; `trial` has its configuration."""
    return {"trial": trial, **dict(_scalars({**model.model_dump(), **train.model_dump()}))}


def _scalars(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Scalar]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _scalars(value, f"{prefix}{name}.")
        elif value is not None:
            yield f"{prefix}{name}", value if isinstance(value, Scalar) else str(value)
