"""Why trained networks work: what each head, node and filter recognizes.

readouts = fit_readouts(model, taps_of(model.config, ["attn"]), dataset, ReadoutConfig(), device=device)
measured = measure_fields(model, readouts, dataset, device=device)
statistics = field_statistics(measured.fields[Tap("attn", 0)].heads)

or all of it at once with `analyze`.
"""

from lsmha.analysis.analyze import Analysis, GroupAnalysis, TapAnalysis, analyze
from lsmha.analysis.clusters import binarize_fields, find_clusters
from lsmha.analysis.fields import TapAccuracy, TapFields, group_fields, measure_fields
from lsmha.analysis.fitting import fit_readouts
from lsmha.analysis.readouts import ReadOut, build_readouts
from lsmha.analysis.statistics import FieldStatistics, field_statistics
from lsmha.analysis.symmetry import SymmetryBreaking, head_label_incidence, symmetry_breaking
from lsmha.analysis.taps import Tap, taps_of, watch_taps

__all__ = [
    "Analysis",
    "FieldStatistics",
    "GroupAnalysis",
    "ReadOut",
    "SymmetryBreaking",
    "Tap",
    "TapAccuracy",
    "TapAnalysis",
    "TapFields",
    "analyze",
    "binarize_fields",
    "build_readouts",
    "field_statistics",
    "find_clusters",
    "fit_readouts",
    "group_fields",
    "head_label_incidence",
    "measure_fields",
    "symmetry_breaking",
    "taps_of",
    "watch_taps",
]
