"""What a later session of a run may change: what it takes, not what its results mean; and it may grow."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from orchestrator.config.sweep import SweepConfig
from orchestrator.errors import UserError

_FREE = (
    "resources",
    "finalists.resources",
    "search.suggestion_batch",
    "search.min_gain",
    "search.paused_gib",
    "data.path",
    "latency.measure_first",
    "analysis",
    "committees",
    "pruning",
    "loggers",
)
"""Settings, or whole sections, without effect on trials and finalists."""

_GROWING = ("search.num_trials", "search.max_epochs", "search.max_hours", "finalists.max_finalists")
_ADDING = ("finalists.seeds", "finalists.include")


def merge_for_resume(recorded: SweepConfig, asked: SweepConfig) -> SweepConfig:
    """The settings that a run goes on with when `asked` is what its user wants now.

    Raises:
        UserError: They differ in a way that would mix results that cannot be compared, or would take something back.
    """
    asked = asked.with_startup_of(recorded)
    before, now = dict(_flat(recorded.with_startup_of(recorded))), dict(_flat(asked))
    problems = [
        problem
        for field in dict.fromkeys([*before, *now])
        if (problem := _problem(field, before.get(field), now.get(field))) is not None
    ]
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise UserError(f"{problems[0]}{more}; another sweep needs another --out")
    return recorded if now == before else asked


def _problem(field: str, before: Any, now: Any) -> str | None:
    if before == now or any(field == free or field.startswith(f"{free}.") for free in _FREE):
        return None
    if field in _GROWING:
        # None is no limit.
        if now is None or (before is not None and now > before):
            return None
        return f"{field}: must be at least {'unlimited' if before is None else before}, as in the run, but got {now}"
    if field in _ADDING:
        missing = [value for value in before if value not in now]
        return f"{field}: must hold {missing[0]}, as in the run, but got {now}" if missing else None
    return f"{field}: must be {before!r}, as in the run, but got {now!r}"


def _flat(config: SweepConfig) -> Iterator[tuple[str, Any]]:
    """Settings by dotted name; lists, and the ranges of a space, count as one setting."""

    def walk(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(value, dict) and prefix.count(".") < 2 and not prefix.startswith("space."):
            for name, part in value.items():
                yield from walk(f"{prefix}.{name}" if prefix else name, part)
        else:
            yield prefix, value

    return walk("", config.model_dump(mode="json"))
