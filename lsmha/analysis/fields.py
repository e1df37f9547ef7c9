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
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lsmha.analysis.readouts import ReadOut
from lsmha.analysis.streaming import BATCH_SIZE, stream_taps
from lsmha.analysis.taps import Tap, tap_heads
from lsmha.data import Dataset
from lsmha.errors import ConfigurationError
from lsmha.models import CCT


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
    counts = torch.bincount(dataset.test.labels, minlength=dataset.num_classes)
    check_labels_present(dataset)
    heads = {tap: tap_heads(model.config, tap) for tap in readouts}
    silenced = pooling_weights == "silenced"
    views = {tap: _views(readout, heads[tap], silenced=silenced) for tap, readout in readouts.items()}
    sums: dict[tuple[Tap, int], Tensor] = {}
    correct: dict[tuple[Tap, str], Tensor] = {}

    def pool(tap: Tap, tokens: Tensor) -> Tensor:
        # One feature set per distinct way of pooling, stacked along the token places.
        return torch.cat([readouts[tap].pool(tokens, groups=groups) for groups in views[tap]], dim=1)

    done = 0
    network_hits = torch.zeros((), dtype=torch.int64, device=device)
    for features, labels, logits in stream_taps(
        model, readouts, dataset.test, dataset, device=device, pool=pool, batch_size=batch_size
    ):
        one_hot = F.one_hot(labels, dataset.num_classes).to(torch.float32).T
        for tap, stacked in features.items():
            by_groups = dict(zip(views[tap], stacked.chunk(len(views[tap]), dim=1), strict=True))
            for groups, pooled in by_groups.items():
                _add(sums, (tap, groups), (one_hot @ pooled.flatten(1).float()).double())
            if with_accuracy:
                _count_correct(correct, tap, readouts[tap], by_groups, heads[tap], labels, silenced=silenced)
        network_hits += (logits.argmax(dim=1) == labels).sum()
        done += len(labels)
        on_batch(done, len(dataset.test))
    means = {key: (total.cpu() / counts.unsqueeze(1)) for key, total in sums.items()}
    fields = {
        tap: _fields(readout, {groups: means[tap, groups] for groups in views[tap]}, heads[tap])
        for tap, readout in readouts.items()
    }
    total = len(dataset.test)
    accuracy = {
        tap: TapAccuracy(
            correct[tap, "readout"].item() / total,
            *((correct[tap, kind].cpu() / total) if heads[tap] else None for kind in ("alone", "silenced")),
        )
        for tap in readouts
        if with_accuracy
    }
    return Measured(fields, accuracy, network_hits.item() / total)


def check_labels_present(dataset: Dataset) -> None:
    """Raise ValueError unless every label has a test image."""
    counts = torch.bincount(dataset.test.labels, minlength=dataset.num_classes)
    missing = [dataset.class_names[label] for label in (counts == 0).nonzero().flatten().tolist()]
    if missing:
        shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise ConfigurationError(
            f"test set of {dataset.name}: every label needs an image, but {len(missing)} lack one: {shown}"
        )


def _views(readout: ReadOut, num_heads: int | None, *, silenced: bool) -> tuple[int, ...]:
    """Into how many groups units are cut for pooling: 1 is all together, which the logits need in any case."""
    if not silenced or readout.scores is None:
        return (1,)
    return tuple(dict.fromkeys((1, num_heads or 1, readout.scores.in_features)))


def _add(sums: dict[tuple[Tap, int], Tensor], key: tuple[Tap, int], value: Tensor) -> None:
    sums[key] = sums[key] + value if key in sums else value


def _count_correct(
    correct: dict[tuple[Tap, str], Tensor],
    tap: Tap,
    readout: ReadOut,
    by_groups: Mapping[int, Tensor],
    num_heads: int | None,
    labels: Tensor,
    *,
    silenced: bool,
) -> None:
    def add(kind: str, hits: Tensor) -> None:
        correct[tap, kind] = correct[tap, kind] + hits if (tap, kind) in correct else hits

    logits = readout.classify(by_groups[1])
    add("readout", (logits.argmax(dim=1) == labels).sum())
    if num_heads is None:
        return
    alone = _head_logits(readout, by_groups[num_heads if num_heads in by_groups else 1], num_heads)
    # What the others say together is what all say but for this head, each with the weights that all share.
    shared = _head_logits(readout, by_groups[1], num_heads) if silenced and num_heads in by_groups else alone
    add("alone", (alone.argmax(dim=2) == labels.unsqueeze(1)).sum(dim=0))
    add("silenced", ((logits.unsqueeze(1) - shared).argmax(dim=2) == labels.unsqueeze(1)).sum(dim=0))


def _head_logits(readout: ReadOut, features: Tensor, num_heads: int) -> Tensor:
    """Logits that each head alone raises, (B, T, F) -> (B, H, K)."""
    grouped = features.unflatten(2, (num_heads, -1))
    weight = readout.weight.unflatten(2, (num_heads, -1))
    return torch.einsum("bthd,kthd->bhk", grouped, weight)


def _fields(readout: ReadOut, means: Mapping[int, Tensor], num_heads: int | None) -> TapFields:
    weight = readout.weight.detach().cpu()
    width = weight.shape[-1]
    places = {groups: mean.view(-1, *weight.shape[1:]) for groups, mean in means.items()}
    shared = places[1]
    return TapFields(
        units=group_fields(places.get(width, shared), weight, width),
        heads=None if num_heads is None else group_fields(places.get(num_heads, shared), weight, num_heads),
        logits=group_fields(shared, weight, 1)[0],
    )


def group_fields(mean_features: Tensor, weight: Tensor, num_groups: int) -> Tensor:
    """Field matrices (G, K, K), float32, of G equal groups of units: heads, or with G = F single nodes or filters.

    Args:
        mean_features: (K, T, F) mean pooled features of the images of each label.
        weight: (K, T, F) read-out weights of each output unit.
        num_groups: G.
    """
    grouped = mean_features.double().unflatten(2, (num_groups, -1))
    return torch.einsum("itgd,otgd->gio", grouped, weight.double().unflatten(2, (num_groups, -1))).float()
