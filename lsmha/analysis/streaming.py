"""One pass of a frozen network over images, with the pooled features of every tap."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from lsmha.analysis.readouts import ReadOut
from lsmha.analysis.taps import Tap, watch_taps
from lsmha.data import Dataset, LabeledImages, normalize
from lsmha.models import CCT

BATCH_SIZE = 125
"""Small enough for a network of CCT-7's size to be read within 2 GiB; on CPUs larger batches are no faster."""

Pool = Callable[[Tap, Tensor], Tensor]
"""What to keep of a tap's tokens (B, N, F)."""


@torch.inference_mode()
def stream_taps(
    model: CCT,
    readouts: Mapping[Tap, ReadOut],
    images: LabeledImages,
    dataset: Dataset,
    *,
    device: torch.device,
    pool: Pool | None = None,
    batch_size: int = BATCH_SIZE,
) -> Iterator[tuple[dict[Tap, Tensor], Tensor, Tensor]]:
    """Batches of pooled features, labels (B,) and the network's logits (B, K), from one forward pass in eval mode.

    Tokens are pooled, by default each tap's by its own read-out to (B, T, F), while the pass goes on and then dropped:
    memory holds pooled features of one batch, and nothing of earlier ones.
    """
    kept: dict[Tap, Tensor] = {}

    def on_tap(tap: Tap, tokens: Tensor) -> None:
        kept[tap] = pool(tap, tokens) if pool else readouts[tap].pool(tokens)

    model.eval()
    with watch_taps(model, readouts, on_tap):
        for batch, labels in zip(images.images.split(batch_size), images.labels.split(batch_size), strict=True):
            logits = model(normalize(batch.to(device, non_blocking=True), dataset.mean, dataset.std))
            yield dict(kept), labels.to(device, non_blocking=True), logits
