"""Field matrices of heads, nodes and filters, all from one pass over the test set.

Shapes: B images, T token places after pooling, F units, H heads, K labels. A field matrix (K, K) has a row for each
input label and a column for each output unit of the read-out.

Everything after the pooled features is linear. So the fields that a unit alone raises, averaged over the images of a
label, are the label's mean pooled feature of that unit times the unit's read-out weights: silencing all other units and
passing the test set again would give the same numbers (arXiv:2501.12880's procedure), once per unit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from lsmha.analysis.readouts import ReadOut
from lsmha.analysis.streaming import BATCH_SIZE, stream_taps
from lsmha.analysis.taps import Tap, tap_heads
from lsmha.data import Dataset
from lsmha.errors import ConfigurationError
from lsmha.models import CCT
from lsmha.shapes import Float, Float32, Int


@dataclass(frozen=True, eq=False)
class TapFields:
    """Mean fields of one tap over the test images of each label, float32 on the CPU."""

    units: Tensor
    """(F, K, K): each node of the heads or the MLP, or each filter, alone."""
    heads: Tensor | None
    """(H, K, K): each head alone; None where the tap has no heads."""
    logits: Tensor
    """(K, K): the whole read-out's mean logits."""


@dataclass(frozen=True, eq=False)
class TapAccuracy:
    """Test accuracy of one tap's read-out."""

    readout: float
    """With all units."""
    alone: Tensor | None
    """(H,) with one head alone; None where the tap has no heads."""
    silenced: Tensor | None
    """(H,) with all heads but one."""


class Measured(NamedTuple):
    """What one pass over the test set gives, by tap, and the accuracy of the network itself."""

    fields: dict[Tap, TapFields]
    accuracy: dict[Tap, TapAccuracy]
    network_accuracy: float


@torch.no_grad()
def measure_fields(
    model: CCT,
    readouts: Mapping[Tap, ReadOut],
    dataset: Dataset,
    *,
    device: torch.device,
    pooling_weights: str = "shared",
    with_accuracy: bool = True,
    batch_size: int = BATCH_SIZE,
    on_batch: Callable[[int, int], None] = lambda *_: None,
) -> Measured:
    """Fields of every unit of every tap, and how accurate heads are alone and missed, over the test set.

    Memory does not grow with the test set, and the cost of the fields not with the number of heads; accuracies classify
    each image once per head, and `with_accuracy=False` leaves them out (and empty).

    Args:
        model: The network.
        readouts: Trained read-out of each tap.
        dataset: Its test split has an image of every label.
        device: Where model and read-outs are.
        pooling_weights: `shared` by all units, or `silenced`: each head's (for units: each unit's) from itself alone.
            Only `shared` fields add up to the logits.
        with_accuracy: Whether to count correct answers too.
        batch_size: Images per forward pass.
        on_batch: Called after each with the images done and the images in all.

    Raises:
        ValueError: A label has no test image.
    """
    check_labels_present(dataset)
    sums = {
        tap: _TapSums(readout, tap_heads(model.config, tap), silenced=pooling_weights == "silenced")
        for tap, readout in readouts.items()
    }
    done = 0
    network_hits = torch.zeros((), dtype=torch.int64, device=device)
    for features, labels, logits in stream_taps(
        model,
        readouts,
        dataset.test,
        dataset,
        device=device,
        pool=lambda tap, tokens: sums[tap].pool(tokens),
        batch_size=batch_size,
    ):
        for tap, pooled in features.items():
            sums[tap].add(pooled, labels, with_accuracy=with_accuracy)
        network_hits += (logits.argmax(dim=1) == labels).sum()
        done += len(labels)
        on_batch(done, len(dataset.test))
    counts = torch.bincount(dataset.test.labels, minlength=dataset.num_classes)
    total = len(dataset.test)
    return Measured(
        {tap: of_tap.fields(counts) for tap, of_tap in sums.items()},
        {tap: of_tap.accuracy(total) for tap, of_tap in sums.items()} if with_accuracy else {},
        network_hits.item() / total,
    )


class _TapSums:
    """What is added up, batch by batch, of one tap.

    Pooled features are stacked along the token places: one set per distinct way of pooling, which is a number of groups
    that units are cut into. One group is all together, which the logits need in any case.
    """

    def __init__(self, readout: ReadOut, num_heads: int | None, *, silenced: bool) -> None:
        self._readout, self._num_heads, self._silenced = readout, num_heads, silenced
        self._ways: tuple[int, ...] = (1,)
        if silenced and readout.scores is not None:
            self._ways = tuple(dict.fromkeys((1, num_heads or 1, readout.scores.in_features)))
        self._features: dict[int, Tensor] = {}
        """(K, T F) by way: summed over the images of each label."""
        self._hits: dict[str, Tensor] = {}
        """Correct answers of the whole read-out (), of each head `alone` (H,), and without each, `silenced` (H,)."""

    def pool(self, tokens: Float[Tensor, "B N F"]) -> Float[Tensor, "B T F"]:
        """Tokens as pooled features, those of each way after those of the one before."""
        return torch.cat([self._readout.pool(tokens, groups=groups) for groups in self._ways], dim=1)

    def add(self, stacked: Float[Tensor, "B T F"], labels: Int[Tensor, " B"], *, with_accuracy: bool) -> None:
        """Take pooled features, as of `pool`."""
        by_groups = dict(zip(self._ways, stacked.chunk(len(self._ways), dim=1), strict=True))
        one_hot = F.one_hot(labels, self._readout.fc.out_features).to(torch.float32).T
        for groups, pooled in by_groups.items():
            _add(self._features, groups, (one_hot @ pooled.flatten(1).float()).double())
        if with_accuracy:
            self._count_hits(by_groups, labels)

    def _count_hits(self, by_groups: Mapping[int, Float[Tensor, "B T F"]], labels: Int[Tensor, " B"]) -> None:
        logits = self._readout.classify(by_groups[1])
        _add(self._hits, "readout", (logits.argmax(dim=1) == labels).sum())
        if (heads := self._num_heads) is None:
            return
        own = heads in by_groups
        alone = _head_logits(self._readout, by_groups[heads if own else 1], heads)
        # What the others say together is what all say but for this head, each with the weights that all share.
        shared = _head_logits(self._readout, by_groups[1], heads) if self._silenced and own else alone
        _add(self._hits, "alone", (alone.argmax(dim=2) == labels.unsqueeze(1)).sum(dim=0))
        without = logits.unsqueeze(1) - shared
        _add(self._hits, "silenced", (without.argmax(dim=2) == labels.unsqueeze(1)).sum(dim=0))

    def fields(self, counts: Int[Tensor, " K"]) -> TapFields:
        """Mean fields; `counts` are the images of each label."""
        weight = self._readout.weight.detach().cpu()
        width = weight.shape[-1]
        means = {
            groups: (total.cpu() / counts.unsqueeze(1)).view(-1, *weight.shape[1:])
            for groups, total in self._features.items()
        }
        shared, heads = means[1], self._num_heads
        return TapFields(
            units=group_fields(means.get(width, shared), weight, width),
            heads=None if heads is None else group_fields(means.get(heads, shared), weight, heads),
            logits=group_fields(shared, weight, 1)[0],
        )

    def accuracy(self, total: int) -> TapAccuracy:
        """Over so many images."""
        alone, silenced = (
            self._hits[kind].cpu() / total if kind in self._hits else None for kind in ("alone", "silenced")
        )
        return TapAccuracy(self._hits["readout"].item() / total, alone, silenced)


def check_labels_present(dataset: Dataset) -> None:
    """Raise ValueError unless every label has a test image."""
    counts = torch.bincount(dataset.test.labels, minlength=dataset.num_classes)
    missing = [dataset.class_names[label] for label in (counts == 0).nonzero().flatten().tolist()]
    if missing:
        shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise ConfigurationError(
            f"test set of {dataset.name}: every label needs an image, but {len(missing)} lack one: {shown}"
        )


Key = TypeVar("Key")


def _add(sums: dict[Key, Tensor], key: Key, value: Tensor) -> None:
    sums[key] = sums[key] + value if key in sums else value


def _head_logits(
    readout: ReadOut, features: Float[Tensor, "B T F"], num_heads: int
) -> Float[Tensor, "B {num_heads} K"]:
    """Logits that each head alone raises."""
    grouped = features.unflatten(2, (num_heads, -1))
    weight = readout.weight.unflatten(2, (num_heads, -1))
    return torch.einsum("bthd,kthd->bhk", grouped, weight)


def group_fields(
    mean_features: Float[Tensor, "K T F"], weight: Float[Tensor, "K T F"], num_groups: int
) -> Float32[Tensor, "{num_groups} K K"]:
    """Field matrices of G equal groups of units: heads, or with G = F single nodes or filters.

    Args:
        mean_features: Mean pooled features of the images of each label.
        weight: Read-out weights of each output unit.
        num_groups: G.
    """
    grouped = mean_features.double().unflatten(2, (num_groups, -1))
    return torch.einsum("itgd,otgd->gio", grouped, weight.double().unflatten(2, (num_groups, -1))).float()
