"""The set of configurations a sweep may try: which are valid, which are the same, and which are close."""

from __future__ import annotations

import itertools
import math
from collections.abc import Container, Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from lsmha.config import ModelConfig, TrainConfig
from orchestrator.config.sweep import Dimension, FloatRange, IntRange, Scalar, searchable_fields
from orchestrator.errors import UserError

MAX_COMBINATIONS = 200_000

Point = dict[str, Scalar | None]
"""A value for each dimension, in the order of the space; None where it is inactive at this point."""

PointKey = tuple[Scalar | None, ...]
"""A point's values: what makes two points the same."""


class SearchSpace:
    """A space over fields of `ModelConfig` and `TrainConfig`, with the structure among them built in.

    The discrete dimensions are enumerated once: combinations that make no valid configuration are left out, and those
    that differ only in an inactive dimension (the head count of a plain CNN, say) count as one point. A sampler
    that knows nothing of that proposes freely, and `nearest` moves its proposal to the closest valid point.

    Raises:
        UserError: No combination is valid, or there are more than `MAX_COMBINATIONS`.
    """

    def __init__(self, dimensions: Mapping[str, Dimension], model: ModelConfig, train: TrainConfig) -> None:
        self.dimensions = dict(dimensions)
        self._base = {ModelConfig: model.model_dump(), TrainConfig: train.model_dump()}
        self._fields = searchable_fields()
        discrete = {name: d for name, d in self.dimensions.items() if not isinstance(d, FloatRange)}
        self._check_size(discrete)
        self._values = {name: _ordered_values(dimension) for name, dimension in discrete.items()}
        self.points = self._enumerate()
        """The valid combinations of the discrete dimensions, in grid order; continuous dimensions are not in them."""

    @cached_property
    def is_finite(self) -> bool:
        """Whether `points` is the whole space: no continuous dimension has an effect at any of them."""
        continuous = [name for name in self.dimensions if name not in self._values]
        at_points = (self.canonical({**dict.fromkeys(continuous, 0.0), **point}) for point in self.points)
        return not continuous or all(point[name] is None for point in at_points for name in continuous)

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """What Optuna samples. Numbers in a list are searched by rank, so that samplers see their order."""
        distributions: dict[str, BaseDistribution] = {}
        for name, dimension in self.dimensions.items():
            if isinstance(dimension, FloatRange):
                distributions[name] = FloatDistribution(dimension.low, dimension.high, log=dimension.log)
            elif _is_ordered(self._values[name]):
                distributions[name] = IntDistribution(0, len(self._values[name]) - 1)
            else:
                distributions[name] = CategoricalDistribution(list(range(len(self._values[name]))))
        return distributions

    def decode(self, params: Mapping[str, Any]) -> dict[str, Scalar]:
        """The values behind sampled parameters, valid or not."""
        return {name: self._values[name][value] if name in self._values else value for name, value in params.items()}

    def encode(self, point: Point, *, inactive: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters behind a point; inactive dimensions keep their parameter of `inactive`.

        Raises:
            ValueError: A value is not in the space.
        """
        params: dict[str, Any] = {}
        for name, value in point.items():
            dimension = self.dimensions[name]
            if value is None:
                params[name] = inactive[name]
            elif isinstance(dimension, FloatRange):
                if isinstance(value, str) or not dimension.low <= value <= dimension.high:
                    raise ValueError(f"{name} must lie in {dimension.low}..{dimension.high}, but got {value!r}")
                params[name] = value
            else:
                params[name] = self._values[name].index(value)
        return params

    def params_of(self, point: Point) -> dict[str, Any]:
        """`encode` where inactive dimensions may have any parameter.

        Raises:
            ValueError: A value is not in the space.
        """
        anything = {
            name: distribution.low if hasattr(distribution, "low") else 0
            for name, distribution in self.distributions.items()
        }
        return self.encode(point, inactive=anything)

    def checked_points(self, listed: Iterable[Mapping[str, Scalar]], *, field: str) -> list[Point]:
        """The distinct points that a setting lists, in its order.

        Raises:
            UserError: One is not valid or not in the space.
        """
        points: dict[PointKey, Point] = {}
        for values in listed:
            point = self.canonical(values)
            try:
                self.params_of(point)
                self.build(point)
            except ValueError:
                raise UserError(f"{field}: each point must be valid and in the space, but got {dict(values)}") from None
            points[self.key(point)] = point
        return list(points.values())

    def canonical(self, values: Mapping[str, Scalar | None]) -> Point:
        """The point with None for each inactive dimension."""
        inactive = ModelConfig.inactive_fields({**self._base[ModelConfig], **values})
        return {name: None if name in inactive else values[name] for name in self.dimensions}

    def build(self, point: Mapping[str, Scalar | None]) -> tuple[ModelConfig, TrainConfig]:
        """The architecture and recipe of a point.

        Raises:
            ValueError: They are not valid together.
        """
        settings = {kind: dict(base) for kind, base in self._base.items()}
        for name, value in point.items():
            if value is not None:
                settings[self._fields[name]][name] = value
        model = settings[ModelConfig]
        model |= ModelConfig.inactive_fields(model)
        return ModelConfig.model_validate(model), TrainConfig.model_validate(settings[TrainConfig])

    def models_at_ends(self) -> Iterator[tuple[ModelConfig, ModelConfig]]:
        """The network of each of `points`: with all continuous dimensions at their low ends, and at their high ends."""
        continuous = {name: d for name, d in self.dimensions.items() if isinstance(d, FloatRange)}

        def at(end: str, point: Point) -> ModelConfig:
            return self.build(self.canonical({**point, **{name: getattr(d, end) for name, d in continuous.items()}}))[0]

        for point in self.points:
            low = at("low", point)
            yield low, at("high", point) if continuous else low

    def key(self, point: Point) -> PointKey:
        """What tells this point from others."""
        return tuple(point[name] for name in self.dimensions)

    def nearest(
        self, values: Mapping[str, Scalar], *, visited: Container[PointKey], rng: np.random.Generator
    ) -> Point | None:
        """The valid point closest to `values` that is not in `visited`; None when all are used up.

        Distance counts ranks over the range in ordered dimensions and 0 or 1 in the others; inactive dimensions
        do not count, and ties fall to chance. Continuous dimensions take their value from `values` wherever they have
        an effect, so `values` holds one for each, whether or not it has an effect at `values` itself.
        """
        proposed = self.canonical(values)
        distance = np.zeros(len(self.points))
        for column, (name, choices) in enumerate(self._values.items()):
            ranks = self._ranks[:, column]
            value = proposed[name]
            own = float("nan") if value is None else choices.index(value)
            if _is_ordered(choices):
                apart = np.abs(ranks - own) / max(1, len(choices) - 1)
            else:
                apart = (ranks != own).astype(float)
                apart[np.isnan(ranks) | np.isnan(own)] = 0
            distance += np.nan_to_num(apart)
        for index in np.lexsort((rng.random(len(distance)), distance)):
            candidate = self.canonical({**values, **self.points[index]})
            if self.key(candidate) not in visited:
                return candidate
        return None

    def redraw_continuous(self, values: Mapping[str, Scalar], *, rng: np.random.Generator) -> dict[str, Scalar]:
        """`values` with the continuous dimensions drawn anew, uniformly (in the logarithm where that is searched)."""
        drawn: dict[str, Scalar] = {}
        for name, dimension in self.dimensions.items():
            if isinstance(dimension, FloatRange):
                low, high = dimension.low, dimension.high
                value = np.exp(rng.uniform(np.log(low), np.log(high))) if dimension.log else rng.uniform(low, high)
                drawn[name] = min(max(float(value), low), high)
        return {**values, **drawn}

    @cached_property
    def _ranks(self) -> np.ndarray:
        """Rank of each point's value in each discrete dimension, (points, discrete dimensions); NaN where inactive."""
        ranks: dict[str, dict[Scalar | None, float]] = {
            name: {None: float("nan")} | {value: float(rank) for rank, value in enumerate(values)}
            for name, values in self._values.items()
        }
        rows = [[ranks[name][point[name]] for name in self._values] for point in self.points]
        return np.array(rows, dtype=float).reshape(len(self.points), len(self._values))

    def check_choices(self) -> None:
        """Refuse what the user can only have written by mistake: a value that no valid configuration has.

        Raises:
            UserError: There is such a value.
        """
        for name, values in self._values.items():
            used = {point[name] for point in self.points}
            for value in values:
                if value not in used and None not in used:
                    reason = next(iter(self._reasons.get((name, value), ())), "")
                    raise UserError(
                        f"space.{name}: each value must be part of a valid configuration, but got {value!r}: {reason}"
                    )

    @staticmethod
    def _check_size(discrete: Mapping[str, list[Scalar] | IntRange]) -> None:
        combinations = math.prod(
            (d.high - d.low) // d.step + 1 if isinstance(d, IntRange) else len(d) for d in discrete.values()
        )
        if combinations > MAX_COMBINATIONS:
            raise UserError(
                f"space: at most {MAX_COMBINATIONS:,} combinations of discrete values are allowed, "
                f"but got {combinations:,}; use fewer choices or a larger step"
            )

    def _enumerate(self) -> list[Point]:
        # Any continuous value does: no constraint ties one to a discrete dimension, but each must be of its field.
        filler = {name: d.high for name, d in self.dimensions.items() if isinstance(d, FloatRange)}
        points: dict[PointKey, Point] = {}
        reason = ""
        self._reasons: dict[tuple[str, Scalar], list[str]] = {}
        for values in itertools.product(*self._values.values()):
            point = self.canonical({**filler, **dict(zip(self._values, values, strict=True))})
            key = self.key(point)
            if key not in points:
                try:
                    self.build(point)
                except ValueError as error:
                    own_reason = _first_reason(str(error))
                    reason = reason or own_reason
                    for choice in zip(self._values, values, strict=True):
                        self._reasons.setdefault(choice, []).append(own_reason)
                    continue
                points[key] = {name: point[name] for name in self._values}
        if not points:
            raise UserError(f"space: must contain a valid configuration, but has none: {reason}")
        return list(points.values())


def _ordered_values(dimension: list[Scalar] | IntRange) -> list[Scalar]:
    if isinstance(dimension, IntRange):
        return list(range(dimension.low, dimension.high + 1, dimension.step))
    return sorted(dimension) if _is_ordered(dimension) else dimension


def _is_ordered(values: list[Scalar]) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _first_reason(reason: str) -> str:
    lines = [line.strip() for line in reason.splitlines() if "Value error" in line]
    return lines[0].removeprefix("Value error, ").split(" [type=")[0] if lines else " ".join(reason.split())


def describe_point(point: Point) -> str:
    """A point as `depth=4 num_heads=16`, without inactive dimensions."""
    return " ".join(f"{name}={_short(value)}" for name, value in point.items() if value is not None)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
