"""The whole analysis of one trained network."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lsmha.analysis.fields import TapAccuracy, TapFields, check_labels_present, measure_fields
from lsmha.analysis.fitting import fit_readouts
from lsmha.analysis.statistics import FieldStatistics, field_statistics
from lsmha.analysis.symmetry import SymmetryBreaking, head_label_incidence, symmetry_breaking
from lsmha.analysis.taps import Tap, taps_of
from lsmha.config import DATA_DEFINED, AnalysisConfig, ModelConfig
from lsmha.data import Dataset
from lsmha.errors import ConfigurationError
from lsmha.models import CCT
from lsmha.progress import OnProgress, no_progress


@dataclass(frozen=True, eq=False)
class GroupAnalysis:
    """Heads, nodes or filters of one tap: how their fields are made, and who recognizes what."""

    kind: str
    """`head`, `node` or `filter`."""
    fields: torch.Tensor
    """(G, K, K) field matrices."""
    statistics: FieldStatistics
    symmetry: SymmetryBreaking
    incidence: torch.Tensor
    """(G, K) bool: whose diagonal element of a label is above the threshold."""


@dataclass(frozen=True, eq=False)
class TapAnalysis:
    """One tap of one block."""

    tap: Tap
    accuracy: TapAccuracy
    logits: torch.Tensor
    """(K, K) mean logits of the read-out by input label."""
    groups: tuple[GroupAnalysis, ...]
    """Heads (where there are any) and nodes, or filters."""


@dataclass(frozen=True, eq=False)
class Analysis:
    """Everything read out of one network."""

    model_config: ModelConfig
    config: AnalysisConfig
    class_names: tuple[str, ...]
    fingerprint: str
    """Of the test set."""
    test_images: int
    test_accuracy: float
    """Of the network itself."""
    taps: tuple[TapAnalysis, ...]
    """From first to last block."""


def analyze(
    model: CCT,
    dataset: Dataset,
    config: AnalysisConfig,
    *,
    device: torch.device,
    on_progress: OnProgress = no_progress,
) -> Analysis:
    """Train read-outs on the training split, then read fields, clusters and symmetry off the test set.

    Raises:
        ValueError: The network does not fit the images or holds NaN or infinite weights, a label has no test image, or
            the read-outs cannot be trained as configured.
    """
    check_fit(model, dataset)
    check_labels_present(dataset)
    model = model.to(device).eval()
    readouts = fit_readouts(
        model,
        taps_of(model.config, config.taps),
        dataset,
        config.readout,
        device=device,
        seed=config.seed,
        on_progress=on_progress,
    )
    fields, accuracy, network_accuracy = measure_fields(
        model,
        readouts,
        dataset,
        device=device,
        pooling_weights=config.pooling_weights,
        on_batch=lambda done, total: on_progress("fields", done, total),
    )
    taps = []
    for tap in readouts:
        groups = group_analyses(tap, fields[tap], config, conv=tap.block < model.config.num_conv_blocks)
        taps.append(TapAnalysis(tap, accuracy[tap], fields[tap].logits, groups))
        on_progress("clusters", len(taps), len(readouts))
    return Analysis(
        model_config=model.config,
        config=config,
        class_names=dataset.class_names,
        fingerprint=dataset.fingerprint,
        test_images=len(dataset.test),
        test_accuracy=network_accuracy,
        taps=tuple(taps),
    )


def check_fit(model: CCT, dataset: Dataset) -> None:
    """Raise ValueError unless the network takes these images, tells these labels apart, and holds finite weights."""
    for name in DATA_DEFINED:
        wanted, got = getattr(dataset, name), getattr(model.config, name)
        if wanted != got:
            raise ConfigurationError(f"{name} must be {wanted} for data set {dataset.name}, but the network has {got}")
    for name, value in model.state_dict().items():
        if not torch.isfinite(value).all():
            raise ConfigurationError(f"weights must be finite, but {name} has NaN or infinite ones")


def group_analyses(tap: Tap, fields: TapFields, config: AnalysisConfig, *, conv: bool) -> tuple[GroupAnalysis, ...]:
    """Clusters, statistics and symmetry of the heads and nodes, or of the filters, of one tap."""
    kinds = [("head", fields.heads)] if fields.heads is not None else []
    kinds.append(("filter" if conv else "node", fields.units))
    return tuple(_group(kind, matrices, config) for kind, matrices in kinds)


def _group(kind: str, fields: torch.Tensor, config: AnalysisConfig) -> GroupAnalysis:
    incidence = head_label_incidence(fields, config.threshold)
    return GroupAnalysis(
        kind=kind,
        fields=fields,
        statistics=field_statistics(fields, config.threshold),
        symmetry=symmetry_breaking(incidence, permutations=config.permutations, seed=config.seed),
        incidence=torch.as_tensor(incidence),
    )
