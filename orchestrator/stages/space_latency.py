"""Which architectures have their latency measured before the first trial trains."""

from __future__ import annotations

from lsmha.config import ModelConfig
from orchestrator.config.sweep import SweepConfig
from orchestrator.run_folder.content_hash import architecture_hash
from orchestrator.search.space import SearchSpace


def measured_first(config: SweepConfig, space: SearchSpace) -> list[ModelConfig]:
    """All architectures of the space, each once, where there are at most `latency.measure_first` of them, or where a
    strategy decides by what is known of all; else none.

    Where latency is no objective, too: trials have it as a column, and to measure between their batches costs more, as
    the processes that train are ended for it.
    """
    if config.search.lets_trials_pause:
        return list({architecture_hash(low): low for low, _ in space.models_at_ends()}.values())
    found: dict[str, ModelConfig] = {}
    for low, high in space.models_at_ends():
        name = architecture_hash(low)
        found.setdefault(name, low)
        # Of a continuous dimension that latency depends on there is no end.
        if (high is not low and architecture_hash(high) != name) or len(found) > config.latency.measure_first:
            return []
    return list(found.values())
