"""How much training a search needs for the front of a whole grid: strategies replayed over tables of learning curves.

    python benchmarks/search_efficiency.py CURVES --out benchmarks/search_efficiency

CURVES is a folder with `digits-cct/` and `nas-bench-nlp-wikitext2/`; the grid on CIFAR-10 is beside this file. A replay
is a search in all but its training: what an epoch brings is looked up. All epochs that were trained are charged; a
point counts once it was trained to its end. The hypervolume is that over the full grid's, behind the nadir of the
grid's own front, a tenth of its range worse.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from optuna.distributions import IntDistribution

from lsmha.bench.report import Report, Table
from lsmha.config import ModelConfig, TrainConfig
from orchestrator.config.sweep import IntRange, ObjectiveConfig, SearchConfig
from orchestrator.config.yaml import load_sweep_config
from orchestrator.search.front.decide import decide
from orchestrator.search.front.features import structure_of
from orchestrator.search.front.gain import Reference, Staircase, front_of
from orchestrator.search.front.moasha import best_spread, decide_by_rank
from orchestrator.search.front.planner import Planner
from orchestrator.search.front.problem import FrontProblem, Progress, Segment, default_rungs, unit_spread
from orchestrator.search.space import SearchSpace
from orchestrator.search.study import ProposalStudy

HERE = Path(__file__).parent
SHARES = (0.05, 0.1, 0.15, 0.25, 0.5)
"""Of the grid's epochs."""
EARLY = 0.15
GOALS = (0.95, 0.98)
"""Of its hypervolume."""


@dataclass(frozen=True)
class Grid:
    """A space of which every point was trained to its end."""

    name: str
    space: Any
    """A `SearchSpace`, or what does for one."""
    structure: np.ndarray
    cost: np.ndarray
    cost_features: np.ndarray
    scores: np.ndarray
    """After each epoch, of each seed, (seeds, n, epochs)."""

    def part(self, size: int, seed: int) -> Grid:
        """So many of its points, at random."""
        chosen = np.sort(np.random.default_rng(seed).choice(len(self.cost), size, replace=False))
        space = copy(self.space)
        space.points = [space.points[place] for place in chosen]
        space.__dict__.pop("_ranks", None)
        return replace(
            self, space=space, structure=self.structure[chosen], cost=self.cost[chosen],
            cost_features=self.cost_features[chosen], scores=self.scores[:, chosen],
        )  # fmt: skip

    def problem(self, factor: int | None = 3, *, structure: bool = True) -> FrontProblem:
        """With rungs `factor` apart; None for none but the end."""
        epochs = self.scores.shape[2]
        rungs = (epochs,) if factor is None else default_rungs(epochs, warmup=1, factor=factor)
        return FrontProblem(
            self.cost, self.structure if structure else self.structure[:, :0], self.cost_features, rungs
        )


def digits(folder: Path) -> Grid:
    """172 networks of this project's space on digits."""
    latency = [json.loads(line) for line in (folder / "latency.jsonl").read_text().splitlines()]
    rows = [
        [json.loads(line) for line in (folder / f"curves-s{seed}.jsonl").read_text().splitlines()] for seed in range(3)
    ]
    space = SearchSpace(
        {
            "embed_dim": [24, 48], "num_heads": [1, 2, 4, 8, 24], "depth": IntRange(low=1, high=4),
            "num_conv_blocks": IntRange(low=0, high=3), "conv_kind": ["residual", "depthwise"],
        },
        ModelConfig(img_size=16, num_classes=10),
        TrainConfig(),
    )  # fmt: skip
    place = {space.key(row["point"]): index for index, row in enumerate(rows[0])}
    order = [place[space.key(point)] for point in space.points]
    cost = np.array([latency[index]["latency_b64_ms"] for index in order])
    sizes = [np.array([rows[0][index][name] for index in order], dtype=float) for name in ("params", "macs")]
    scores = np.array([[of_seed[index]["val_accuracy"] for index in order] for of_seed in rows])
    return Grid("digits-cct", space, structure_of(space.points), cost, unit_spread([cost, *sizes]), scores)


def cifar10_small() -> Grid:
    """94 networks of this project's space on CIFAR-10 (`cifar10-small.yaml`)."""
    config = load_sweep_config(HERE.parent / "search_spaces" / "cifar10-small.yaml")
    rows = pd.read_parquet(HERE / "cifar10_small_grid.parquet")
    model = config.model.model_copy(update={"img_size": 32, "num_classes": 10})
    space = SearchSpace(config.space, model, config.train)
    names = [*config.space]
    # A table has NaN where a value has no effect; columns that have one are of floats.
    values = rows[names].astype(object).where(rows[names].notna(), None)
    keys = [space.key(dict(zip(names, point, strict=True))) for point in values.itertuples(index=False)]
    place = {space.key(point): index for index, point in enumerate(space.points)}
    rows = rows.assign(place=[place[key] for key in keys]).sort_values(["seed", "place", "epoch"])
    scores = rows["val_accuracy"].to_numpy().reshape(rows["seed"].nunique(), len(space.points), config.train.epochs)
    known = rows.drop_duplicates("place")
    cost = known["latency_ms"].to_numpy()
    sizes = [known[name].to_numpy(dtype=float) for name in ("params", "macs")]
    return Grid("cifar10-small", space, structure_of(space.points), cost, unit_spread([cost, *sizes]), scores)


def nas_bench_nlp(folder: Path, metric: str) -> Grid:
    """Recurrent cells on WikiText-2 that were trained for all epochs and learned something, each graph once."""
    with zipfile.ZipFile(folder / "logs.zip") as logs:
        found = [json.loads(logs.read(name)) for name in sorted(logs.namelist()) if name.endswith(".json")]
    runs = [
        run
        for run in {str(run["recepie"]): run for run in reversed(found)}.values()
        if len(run["val_losses"]) == len(run["wall_times"]) == 50
        and np.isfinite(run["val_losses"]).all()
        and run["val_losses"][-1] < 6
    ]
    cells = [json.loads(run["recepie"]) if isinstance(run["recepie"], str) else run["recepie"] for run in runs]
    used = [Counter(node["op"] for node in cell.values()) for cell in cells]
    operations = sorted(set().union(*used))
    counts = np.array([[sum(ops.values()), *(ops[op] for op in operations)] for ops in used])
    structure = (counts - counts.min(axis=0)) / np.maximum(np.ptp(counts, axis=0), 1)
    known = {
        "params": np.array([run["num_params"] for run in runs], dtype=float),
        "seconds": np.array([np.median(run["wall_times"]) for run in runs]),
    }
    scores = -np.array([[run["val_losses"] for run in runs]])
    name = f"NAS-Bench-NLP, {metric}"
    return Grid(name, CountedSpace(counts), structure, known[metric], unit_spread([*known.values()]), scores)


class CountedSpace:
    """Points that are told apart by counts, as far as a `ProposalStudy` looks at a `SearchSpace`."""

    is_finite = True

    def __init__(self, counts: np.ndarray) -> None:
        # Of equal ones the second is the first one's twin, and so on.
        seen: Counter[bytes] = Counter()
        twins = []
        for row in counts:
            twins.append(seen[row.tobytes()])
            seen[row.tobytes()] += 1
        self._values = np.column_stack([counts, twins])
        self._range = np.maximum(np.ptp(self._values, axis=0), 1)
        self.points = [{f"c{place}": int(count) for place, count in enumerate(row)} for row in self._values]
        self.distributions = {
            f"c{place}": IntDistribution(int(column.min()), int(column.max()))
            for place, column in enumerate(self._values.T)
        }

    def key(self, point: dict[str, int]) -> tuple[int, ...]:
        return tuple(point.values())

    def checked_points(self, listed: Any, field: str) -> list[Any]:
        return []

    def decode(self, params: dict[str, int]) -> dict[str, int]:
        return params

    canonical = params_of = decode

    def encode(self, point: dict[str, int], inactive: Any) -> dict[str, int]:
        return point

    def build(self, point: Any) -> tuple[None, None]:
        return None, None

    def nearest(self, values: dict[str, int], *, visited: set[tuple[int, ...]], rng: np.random.Generator) -> Any:
        distance = (np.abs(self._values - [values[name] for name in self.distributions]) / self._range).sum(axis=1)
        order = np.lexsort((rng.random(len(distance)), distance))
        return next((self.points[place] for place in order if self.key(self.points[place]) not in visited), None)


class Outcome(NamedTuple):
    """What a replay came to."""

    at_shares: tuple[float, ...]
    """Hypervolume at each of `SHARES`."""
    behind: tuple[float, ...]
    """What the front found lacks at each of them beside the grid's: score, the most at any cost."""
    to_goals: tuple[float, ...]
    """Share of the grid's epochs to each of `GOALS`; infinite if it did not get there."""
    decision_s: float
    """Median time of a decision."""
    idle: float
    """Share of the workers' time up to the last decision in which they had nothing to do."""


Step = tuple[int, int]
"""Epochs that were charged, and the point that got to its end, or -1."""


def outcome(grid: Grid, seed: int, steps: Sequence[Step], decision_s: float = 0.0, idle: float = 0.0) -> Outcome:
    """Of a replay with the scores of a seed."""
    final, cost = grid.scores[seed, :, -1], grid.cost
    reference = Reference.behind(cost, final)
    whole = Staircase.under(cost, final, reference).hypervolume
    shares, volumes, gaps, spent, done = [0.0], [0.0], [behind(cost, final, [])], 0, []
    for epochs, point in steps:
        spent += epochs
        if point >= 0:
            done.append(point)
            shares.append(spent / grid.scores[seed].size)
            volumes.append(Staircase.under(cost[done], final[done], reference).hypervolume / whole)
            gaps.append(behind(cost, final, done))
    places = [int(np.searchsorted(shares, share, side="right")) - 1 for share in SHARES]
    at, lacking = [volumes[place] for place in places], [gaps[place] for place in places]
    to = [next((s for s, v in zip(shares, volumes, strict=True) if v >= goal), math.inf) for goal in GOALS]
    return Outcome(tuple(at), tuple(lacking), tuple(to), decision_s, idle)


def behind(cost: np.ndarray, score: np.ndarray, found: Sequence[int]) -> float:
    """The most that the best of all, at any cost, is better by than the best that was found and costs no more; where
    none does, than the worst."""
    front = front_of(cost, score)
    best = [max((float(score[p]) for p in found if cost[p] <= limit), default=score.min()) for limit in cost[front]]
    return float(np.max(score[front] - best).clip(0))


def replay(
    grid: Grid,
    problem: FrontProblem,
    strategy: Callable[..., list[Segment]],
    run: int,
    *,
    workers: int = 1,
    stop: float = 0.5,
) -> Outcome:
    """A search by a planner; each worker is as fast as the network's cost says, within some 20 %."""
    scores = grid.scores[run % len(grid.scores)]
    planner = Planner(
        problem, partial(strategy, seed=run), workers=workers, epoch_cost=grid.cost,
        max_epochs=math.ceil(stop * scores.size),
    )  # fmt: skip
    rng = np.random.default_rng(run)
    waiting: list[tuple[int, int, int]] = []
    training: list[tuple[float, int, int, int]] = []
    now, busy, steps, took = 0.0, 0.0, [], []
    while True:
        while len(training) < workers:
            if not waiting:
                began = time.perf_counter()
                decision = planner.next()
                if decision is None:
                    break
                took.append(time.perf_counter() - began)
                waiting += [(s.point, s.from_epoch, s.to_epoch) for s in decision.segments]
            point, from_epoch, to_epoch = waiting.pop(0)
            duration = (to_epoch - from_epoch) * grid.cost[point] * rng.lognormal(0.0, 0.2)
            busy += duration
            heapq.heappush(training, (now + duration, point, from_epoch, to_epoch))
        if not training:
            break
        now, point, from_epoch, to_epoch = heapq.heappop(training)
        steps.append((to_epoch - from_epoch, point if to_epoch == problem.epochs else -1))
        for rung in problem.rungs:
            if from_epoch < rung <= to_epoch:
                planner.tell(point, rung, float(scores[point, rung - 1]))
    return outcome(grid, run % len(grid.scores), steps, float(np.median(took)), 1 - busy / (now * workers))


def _by_study(sampler: Any, grid: Grid, run: int, *, stop: float = 0.5) -> Outcome:
    """A search by full trainings that an Optuna sampler proposes, two at a time."""
    seed, epochs = run % len(grid.scores), grid.scores.shape[2]
    objectives = [
        ObjectiveConfig(metric="val_accuracy", direction="maximize"),
        ObjectiveConfig(metric="latency_ms", direction="minimize"),
    ]
    trials = math.ceil(stop * len(grid.cost))
    study = ProposalStudy(grid.space, SearchConfig(sampler=sampler, num_trials=trials), objectives, seed=run)
    place = {grid.space.key(point): index for index, point in enumerate(grid.space.points)}
    steps: list[Step] = []
    while len(steps) < trials:
        for proposal in [study.ask(), study.ask()]:
            assert proposal is not None
            point = place[grid.space.key(proposal.point)]
            steps.append((epochs, point))
            study.tell(proposal.number, {"val_accuracy": grid.scores[seed, point, -1], "latency_ms": grid.cost[point]})
    return outcome(grid, seed, steps)


class MoAshaStopping:
    """As published: a run that is not among the best in `eta` when it gets to a rung ends there for good."""

    def __init__(self, eta: int) -> None:
        self._eta = eta
        self._stopped: set[int] = set()

    def __call__(self, problem: FrontProblem, progress: Progress, *, seed: int) -> list[Segment]:
        scores, level, pending = progress.scores, progress.level, progress.pending
        for point in np.flatnonzero((level > 0) & (level < len(problem.rungs))):
            if point in pending or point in self._stopped:
                continue
            rung = level[point] - 1
            there = np.flatnonzero(level > rung)
            best = there[best_spread(problem.cost[there], scores[there, rung])[: max(1, len(there) // self._eta)]]
            if point in best:
                return [Segment(int(point), problem.rungs[rung], problem.rungs[rung + 1], "rank")]
            self._stopped.add(int(point))
        for point in np.random.default_rng(seed).permutation(len(problem)):
            if level[point] == 0 and point not in pending:
                return [Segment(int(point), 0, problem.rungs[0], "rank")]
        return []


def by_stopping(grid: Grid, run: int) -> Outcome:
    return replay(grid, grid.problem(3), MoAshaStopping(3), run)


def replay_oracle(grid: Grid, run: int) -> Outcome:
    """What nobody can do better: full trainings of the points that add most, which it knows."""
    seed, epochs = run % len(grid.scores), grid.scores.shape[2]
    final = grid.scores[seed, :, -1]
    reference = Reference.behind(grid.cost, final)
    done: list[int] = []
    for _ in range(len(grid.cost) // 2):
        stairs = Staircase.under(grid.cost[done], final[done], reference)
        gain = stairs.expected_gain(grid.cost, final, np.zeros(len(final)))
        if gain.max() <= 1e-9:
            break
        done.append(int(np.argmax(gain)))
    return outcome(grid, seed, [(epochs, point) for point in done])


Candidate = Callable[[Grid, int], Outcome]


def by_planner(
    strategy: Callable[..., list[Segment]], factor: int | None = 3, *, structure: bool = True, workers: int = 1
) -> Callable[[Grid, int], Outcome]:
    return partial(_by_planner, strategy, factor, structure, workers)


def _by_planner(
    strategy: Callable[..., list[Segment]], factor: int | None, structure: bool, workers: int, grid: Grid, run: int
) -> Outcome:
    return replay(grid, grid.problem(factor, structure=structure), strategy, run, workers=workers)


CANDIDATES: dict[str, Candidate] = {
    "front": by_planner(decide),
    "front, without the searched values": by_planner(decide, structure=False),
    "front, full trainings (stage A)": by_planner(decide, None),
    "MO-ASHA, stopping, eta 3": by_stopping,
    **{f"MO-ASHA, pause and resume, eta {eta}": by_planner(partial(decide_by_rank, eta=eta), eta) for eta in (2, 3, 4)},
    **{f"Optuna, {sampler}": partial(_by_study, sampler) for sampler in ("tpe", "nsga2", "random")},
    "oracle": replay_oracle,
}
WORKERS = (1, 2, 8, 32)
"""Trials at a time, for the share of time that workers have nothing to do."""


@dataclass(frozen=True)
class Row:
    """A candidate's replays on a grid."""

    grid: str
    candidate: str
    outcomes: list[Outcome]

    def to_goal(self, goal: int, q: float) -> float:
        """A quantile of the share of the grid's epochs to one of `GOALS`."""
        # The higher of two neighbours: with infinite ones there is nothing to interpolate.
        return float(np.quantile([run.to_goals[goal] for run in self.outcomes], q, method="higher"))

    def cells(self, front: Row) -> list[str]:
        at = [
            "{:.3f} ({:.3f}, {:.3f})".format(
                *np.quantile([run.at_shares[place] for run in self.outcomes], (0.5, 0.25, 0.75))
            )
            for place in range(len(SHARES))
        ]
        to = [f"{_percent(self.to_goal(goal, 0.5))} ({_percent(self.to_goal(goal, 0.9))})" for goal in (0, 1)]
        early = np.mean([run.to_goals[0] <= EARLY for run in self.outcomes])
        behind = np.quantile([run.behind[SHARES.index(EARLY)] for run in self.outcomes], (0.5, 0.9))
        first = f"{_first(front, self):.0%}" if front is not self else ""
        return [self.candidate, *to, f"{early:.0%}", first, "{:.4f} ({:.4f})".format(*behind), *at]


def _first(front: Row, other: Row) -> float:
    """In how many pairs of replays with the same seeds `front` is at 95 % first; ties count half."""
    pairs = [(one.to_goals[0], two.to_goals[0]) for one, two in zip(front.outcomes, other.outcomes, strict=True)]
    return float(np.mean([one < two if one != two else 0.5 for one, two in pairs]))


def replays(grid: Grid, part: int | None, candidate: str, runs: int, pool: ProcessPoolExecutor) -> Row:
    """Replays of a candidate on a grid, or on random parts of it."""
    grids = [grid if part is None else grid.part(part, 100 + run) for run in range(runs)]
    outcomes = list(pool.map(CANDIDATES[candidate], grids, range(runs)))
    row = Row(grid.name if part is None else f"{part} points of {grid.name}", candidate, outcomes)
    print(f"{row.grid}: {candidate}: to 95 % {_percent(row.to_goal(0, 0.5))}", flush=True)
    return row


def _percent(share: float) -> str:
    return "-" if math.isinf(share) else f"{100 * share:.1f}"


@dataclass(frozen=True)
class Idle:
    """What workers lose to waiting."""

    grid: str
    workers: int
    idle: float
    """Median share of their time without work, up to the last segment."""
    to_95: float
    """Median share of the grid's epochs."""
    decision_ms: float
    """Median time of a decision."""


def idle_of(grid: Grid, workers: int, runs: int, pool: ProcessPoolExecutor) -> Idle:
    outcomes = list(pool.map(by_planner(decide, workers=workers), [grid] * runs, range(runs)))
    return Idle(
        grid.name,
        workers,
        float(np.median([run.idle for run in outcomes])),
        float(np.quantile([run.to_goals[0] for run in outcomes], 0.5, method="higher")),
        1000 * float(np.median([run.decision_s for run in outcomes])),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("curves", type=Path, help="folder of the tables")
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument(
        "--grids", nargs="+", type=int, choices=range(6), default=[*range(6)], help="some of the tables"
    )
    parser.add_argument("--candidates", nargs="+", default=[*CANDIDATES], choices=[*CANDIDATES])
    parser.add_argument("--out", type=Path, help="stem of the files for the results")
    options = parser.parse_args()
    nlp = options.curves / "nas-bench-nlp-wikitext2"
    whole = digits(options.curves / "digits-cct")
    grids: list[tuple[Grid, int | None]] = [
        (whole, None), (whole, 120), (whole, 90), (nas_bench_nlp(nlp, "seconds"), None),
        (nas_bench_nlp(nlp, "params"), None), (cifar10_small(), None),
    ]  # fmt: skip
    tables: list[Table] = []
    rows: list[Row] = []
    with ProcessPoolExecutor() as pool:
        for grid, part in [grids[place] for place in options.grids]:
            found = [replays(grid, part, name, options.runs, pool) for name in options.candidates]
            header = [
                f"{found[0].grid}: {part or len(grid.cost)} points, {grid.scores.shape[2]} epochs",
                *(f"% of epochs to {goal:.0%}, median (90th percentile)" for goal in GOALS),
                "runs at 95 % by 15 %", "pairs in which front is first",
                f"score behind at {EARLY:.0%}, median (90th percentile)",
                *(f"at {share:.0%}" for share in SHARES),
            ]  # fmt: skip
            tables.append(Table(header, [row.cells(found[0]) for row in found]))
            rows += found
        idle = [idle_of(whole, workers, options.runs, pool) for workers in WORKERS]
    tables.append(
        Table(
            ["workers", "idle", "% of epochs to 95 %", "ms a decision"],
            [[str(i.workers), f"{i.idle:.1%}", _percent(i.to_95), f"{i.decision_ms:.0f}"] for i in idle],
        )
    )
    Report(
        title="How much training the front takes",
        protocol=f"Replays over tables of learning curves, {options.runs} of each candidate, with the seeds 0, 1, ...; "
        "one worker, but for the last table. Hypervolume is over the full grid's, median (quartiles).",
        command=f"python benchmarks/search_efficiency.py CURVES --runs {options.runs} "
        f"--grids {' '.join(map(str, options.grids))}",
        tables=tables,
        results={"replays": rows, "idle": idle},
    ).publish(options.out)


if __name__ == "__main__":
    main()
