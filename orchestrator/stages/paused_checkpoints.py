"""The disk that trials take while they pause, within a limit."""

from __future__ import annotations

import os
from collections.abc import Sequence

from lsmha.io.paths import RunPath
from lsmha.training.checkpoints import checkpoint_files, remove_checkpoint
from orchestrator.run_folder.ledger import Ledger
from orchestrator.run_folder.records import DroppedCheckpoint


class PausedCheckpoints:
    """Checkpoints of the trials that pause.

    Args:
        ledger: Says where they are, and is told what was dropped.
        limit_gib: What those may take together that wait.
    """

    def __init__(self, ledger: Ledger, limit_gib: float) -> None:
        self._ledger, self._limit = ledger, limit_gib * 2**30
        self._sizes: dict[tuple[str, int], int] = {}
        """In bytes, by trial and the epoch at which it pauses."""

    def excess(self, waiting: Sequence[str]) -> float:
        """Bytes that the checkpoints of these trials take beyond the limit."""
        return sum(map(self._size, waiting)) - self._limit

    def drop(self, waiting: Sequence[str]) -> None:
        """Drop those of the first of these trials, until what all take together is within the limit."""
        excess = self.excess(waiting)
        for trial in waiting:
            if excess <= 0:
                return
            if (size := self._size(trial)) == 0:
                continue
            epochs = self._ledger.pauses[trial].epochs
            # The record comes second: a session that is killed in between leaves a trial that begins anew, whereas a
            # checkpoint that was recorded as dropped could be one of a later session's.
            remove_checkpoint(self._ledger.checkpoint_path(trial))
            self._ledger.add(DroppedCheckpoint(trial, epochs, size))
            self._sizes[trial, epochs] = 0
            excess -= size

    def _size(self, trial: str) -> int:
        place = trial, self._ledger.pauses[trial].epochs
        if place not in self._sizes:
            files = checkpoint_files(self._ledger.checkpoint_path(trial))
            self._sizes[place] = sum(_bytes_of(file) for file in files if file.is_file())
        return self._sizes[place]


def _bytes_of(file: RunPath) -> int:
    with file.open("rb") as stream:
        return stream.seek(0, os.SEEK_END)
