"""Random numbers that depend on seeds alone: of a block, or of a stream that is drawn from now and then."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor


def mix_seeds(*seeds: int) -> int:
    """One well-mixed 63-bit seed from several small ones; their number counts, or (1, 2) would be (1, 2, 0)."""
    return int(np.random.SeedSequence((len(seeds), *seeds)).generate_state(1, np.uint64)[0] >> np.uint64(1))


@contextmanager
def seeded(device: torch.device, *seeds: int) -> Iterator[None]:
    """Seed torch's global generators for the block and give them back as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(mix_seeds(*seeds))
        yield


class RandomStream:
    """A random stream of its own on torch's global generators, seeded as `seeded` does."""

    def __init__(self, device: torch.device, *seeds: int) -> None:
        self._device = device
        with seeded(device, *seeds):
            self._states = self._get()

    @contextmanager
    def drawn_from(self) -> Iterator[None]:
        """Draw from this stream in the block; the global generators are as before behind it."""
        before = self._get()
        self._set(self._states)
        try:
            yield
        finally:
            self._states = self._get()
            self._set(before)

    def _get(self) -> list[Tensor]:
        states = [torch.get_rng_state()]
        return [*states, torch.cuda.get_rng_state(self._device)] if self._device.type == "cuda" else states

    def _set(self, states: list[Tensor]) -> None:
        torch.set_rng_state(states[0])
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(states[1], self._device)
