"""An analysis on disk: the fields themselves, and tables by block, by unit, and by unit and label."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from lsmha.analysis.analyze import Analysis, GroupAnalysis, TapAnalysis
from lsmha.errors import DamagedFileError
from lsmha.io.atomic import atomic_write_text
from lsmha.io.checksums import CHECKSUM_PLACEHOLDER, read_checked, write_checked
from lsmha.io.paths import RunPath
from lsmha.io.tables import write_table


def save_analysis(analysis: Analysis, folder: RunPath) -> None:
    """Write `fields.safetensors`, `blocks.parquet`, `heads.parquet`, `incidence.parquet` and, last, `analysis.json`.

    The folder is made, if there is one to make it in.

    Raises:
        OSError: The storage is full, read-only or gone; each file is the old one or the new one.
    """
    folder.mkdir(exist_ok=True)
    fields = {f"{tap.tap}.{group.kind}": group.fields.contiguous() for tap in analysis.taps for group in tap.groups}
    fields |= {f"{tap.tap}.logits": tap.logits.contiguous() for tap in analysis.taps}
    metadata = {"fingerprint": analysis.fingerprint, "checksum": CHECKSUM_PLACEHOLDER}
    write_checked(folder / "fields.safetensors", save(fields, metadata=metadata))
    write_table(folder / "blocks.parquet", block_rows(analysis))
    write_table(folder / "heads.parquet", unit_rows(analysis))
    write_table(folder / "incidence.parquet", incidence_rows(analysis))
    description = {
        "model": analysis.model_config.model_dump(mode="json"),
        "analysis": analysis.config.model_dump(mode="json"),
        "class_names": list(analysis.class_names),
        "test_fingerprint": analysis.fingerprint,
        "test_images": analysis.test_images,
        "test_accuracy": analysis.test_accuracy,
    }
    atomic_write_text(folder / "analysis.json", json.dumps(description, indent=2) + "\n")


def load_fields(folder: RunPath) -> dict[str, Tensor]:
    """The field matrices that `save_analysis` wrote, by `block<m>.<tap>.<head|node|filter|logits>`.

    Raises:
        OSError: There are none.
        DamagedFileError: They are not those that were saved.
    """
    path = folder / "fields.safetensors"
    content = read_checked(path, required=False)
    try:
        return load(content)
    except SafetensorError as error:
        raise DamagedFileError(f"{path} is damaged: {error}") from None


def block_rows(analysis: Analysis) -> list[dict[str, Any]]:
    """One row for the heads, the nodes or the filters of each tap."""
    config = analysis.config
    measured = {
        "threshold": config.threshold,
        "solver": config.readout.solver,
        "pooling": config.readout.pooling,
        "pooling_weights": config.pooling_weights,
        "test_images": analysis.test_images,
        "test_accuracy": analysis.test_accuracy,
    }
    return [
        {**_place(analysis, tap, group), **_block_columns(tap, group), **measured}
        for tap in analysis.taps
        for group in tap.groups
    ]


def unit_rows(analysis: Analysis) -> list[dict[str, Any]]:
    """One row for each head, node and filter."""
    rows = []
    for tap in analysis.taps:
        for group in tap.groups:
            statistics = group.statistics
            alone, silenced = _head_accuracies(tap, group)
            rows += [
                {
                    **_place(analysis, tap, group),
                    "index": index,
                    "num_clusters": int(statistics.num_clusters[index]),
                    "num_labels": int(statistics.labels_per_head[index]),
                    "noise": int(statistics.noise[index]),
                    "column_noise": int(statistics.column_noise[index]),
                    "ones": int(statistics.ones[index]),
                    "empty": bool(statistics.empty[index]),
                    "snr": _finite(statistics.head_snr[index]),
                    "accuracy_alone": None if alone is None else alone[index].item(),
                    "accuracy_silenced": None if silenced is None else silenced[index].item(),
                    "clusters": statistics.clusters[index],
                }
                for index in range(len(statistics.clusters))
            ]
    return rows


def incidence_rows(analysis: Analysis) -> list[dict[str, Any]]:
    """One row for each label that a head, node or filter recognizes, with the mean field that it raises there."""
    rows = []
    for tap in analysis.taps:
        for group in tap.groups:
            place = _place(analysis, tap, group)
            for index, label in group.incidence.nonzero().tolist():
                field = group.fields[index, label, label].item()
                name = analysis.class_names[label]
                rows.append({**place, "index": index, "label": label, "class_name": name, "field": field})
    return rows


def _place(analysis: Analysis, tap: TapAnalysis, group: GroupAnalysis) -> dict[str, Any]:
    conv = tap.tap.block < analysis.model_config.num_conv_blocks
    kind = "conv" if conv else "transformer"
    return {"block": tap.tap.block, "block_kind": kind, "tap": tap.tap.kind, "unit": group.kind}


def _head_accuracies(tap: TapAnalysis, group: GroupAnalysis) -> tuple[Tensor | None, Tensor | None]:
    """Accuracies (H,) of each head alone and without it; None for nodes and filters."""
    return (tap.accuracy.alone, tap.accuracy.silenced) if group.kind == "head" else (None, None)


def _block_columns(tap: TapAnalysis, group: GroupAnalysis) -> dict[str, Any]:
    statistics, symmetry = group.statistics, group.symmetry
    alone, silenced = _head_accuracies(tap, group)
    return {
        "num_units": len(statistics.clusters),
        "num_empty": int(statistics.empty.sum()),
        "readout_accuracy": tap.accuracy.readout,
        "mean_accuracy_alone": None if alone is None else alone.mean().item(),
        "max_accuracy_alone": None if alone is None else alone.max().item(),
        "mean_accuracy_silenced": None if silenced is None else silenced.mean().item(),
        **{name: _finite(value) for name, value in asdict(statistics.means).items()},
        **{f"{name}_nonempty": _finite(value) for name, value in asdict(statistics.means_nonempty).items()},
        "cluster_snr": _finite(statistics.cluster_snr),
        "cluster_snr_nonempty": _finite(statistics.cluster_snr_nonempty),
        "field_snr": _finite(statistics.field_snr),
        "mean_head_snr": _finite(statistics.mean_head_snr),
        "cluster_sizes": list(statistics.cluster_sizes),
        "cluster_size_counts": list(statistics.cluster_sizes.values()),
        "heads_per_label": symmetry.heads_per_label.tolist(),
        "num_unrecognized_labels": len(symmetry.unrecognized_labels),
        "mean_overlap": _finite(symmetry.mean_overlap),
        "mean_jaccard": _finite(symmetry.mean_jaccard),
        "null_mean_overlap": _finite(symmetry.null_mean_overlap),
        "null_std_overlap": _finite(symmetry.null_std_overlap),
        "p_smaller_overlap": _finite(symmetry.p_smaller),
        "p_larger_overlap": _finite(symmetry.p_larger),
    }


def _finite(value: float) -> float | None:
    """Null for what there is none of (NaN), and for the ratio of some signal to no noise: JSON knows neither."""
    return float(value) if math.isfinite(value) else None
