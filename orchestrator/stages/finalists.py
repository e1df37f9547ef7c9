"""Which trials are trained again at the full budget."""

from __future__ import annotations

from collections.abc import Callable

from orchestrator.config.sweep import FinalistsConfig
from orchestrator.run_folder.ledger import Ledger
from orchestrator.run_folder.records import TrialRecord
from orchestrator.search.space import SearchSpace


def choose_finalists(
    ledger: Ledger, space: SearchSpace, config: FinalistsConfig, *, say: Callable[[str], None]
) -> list[TrialRecord]:
    """Trials spread along the front, and those that the settings include; `say` is told of one that failed."""
    chosen = spread_along(ledger.front(), config.max_finalists)
    included = {space.key(point) for point in space.checked_points(config.include, field="finalists.include")}
    known = {record.id for record in chosen}
    for record in ledger.trials:
        if space.key(record.point) in included and record.id not in known:
            if record.failed:
                say(f"{record.id} is in finalists.include, but its trial failed: {record.error}")
            else:
                chosen.append(record)
    return chosen


def spread_along(front: list[TrialRecord], max_finalists: int) -> list[TrialRecord]:
    """At most `max_finalists` of the front, evenly spread along it, both ends included."""
    if len(front) <= max_finalists:
        return list(front)
    if max_finalists <= 1:
        return front[:max_finalists]
    step = (len(front) - 1) / (max_finalists - 1)
    return [front[round(index * step)] for index in range(max_finalists)]
