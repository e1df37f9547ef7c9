"""The settings of a sweep: typed, documented, validated; the source of its JSON schema."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, ValidationError, ValidationInfo, field_validator, model_validator
from typing_extensions import Self

from lsmha.config import (
    DATA_DEFINED,
    AnalysisConfig,
    Config,
    DataConfig,
    LatencyConfig,
    ModelConfig,
    PruningConfig,
    Rule,
    TrainConfig,
    distinct,
)

RENAMED_SETTINGS = {
    "search.wave_size": "search.suggestion_batch",
    "search.warm_start": "search.points_to_evaluate",
    "resources.seeds_together": "resources.max_stacked_seeds",
    "finalists.resources.seeds_together": "finalists.resources.max_stacked_seeds",
}
"""What settings are called today, by the name that version 0.1 had. A YAML with an old name is refused."""

DIMENSION_FORMS = ("choices", "integers", "numbers")
"""Forms of a dimension, as the location of a pydantic error names them."""

Metric = Literal["val_accuracy", "val_loss", "latency_ms", "params", "macs", "seconds"]
LoggerName = Literal["tensorboard", "mlflow", "wandb", "comet"]
Scalar = bool | int | float | str
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # NumPy's generators, which Optuna seeds, take no more


class IntRange(Config):
    """Whole numbers from `low` to `high`, both included."""

    low: int
    """Smallest value."""
    high: int
    """Largest value."""
    step: int = Field(1, ge=1)
    """Distance between values."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low <= high must hold, but got low={self.low}, high={self.high}")
        return self


class FloatRange(Config):
    """Real numbers from `low` to `high`."""

    low: float
    """Smallest value."""
    high: float
    """Largest value."""
    log: bool = False
    """Search the logarithm."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low < high must hold, but got low={self.low}, high={self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"low > 0 must hold with log, but got low={self.low}")
        return self


Choices = Annotated[list[Scalar], Field(min_length=1)]


def _kind_of_dimension(value: Any) -> str | None:
    """Which form a dimension has, so that its errors speak of that form alone."""
    if isinstance(value, list):
        return "choices"
    if isinstance(value, IntRange | FloatRange):
        return "integers" if isinstance(value, IntRange) else "numbers"
    if isinstance(value, dict):
        bounds = (value.get("low"), value.get("high"))
        return "numbers" if any(isinstance(bound, float) for bound in bounds) or "log" in value else "integers"
    return None


Dimension = Annotated[
    Annotated[Choices, Tag(DIMENSION_FORMS[0])]
    | Annotated[IntRange, Tag(DIMENSION_FORMS[1])]
    | Annotated[FloatRange, Tag(DIMENSION_FORMS[2])],
    Discriminator(
        _kind_of_dimension,
        custom_error_type="dimension",
        custom_error_message="must be a list of choices, or a range with low and high",
    ),
]


class ObjectiveConfig(Config):
    """One axis of the front."""

    metric: Metric
    """What to optimize. `params` and `macs` are counts, `latency_ms` is per image, `seconds` is training time."""
    direction: Literal["maximize", "minimize"]
    """Which way is better."""


class SearchConfig(Config):
    """How configurations are proposed."""

    strategy: Literal["auto", "sampler", "front", "moasha"] = "auto"
    """What decides which configuration is trained, and how far: a `sampler` of Optuna proposes, and each trains to its
    end; `front` trains what is expected to gain most for the front, up to the next of its `rungs`, where it pauses
    until more of it is worth it; `moasha` has one in `reduction_factor` go on at each rung, by rank. The last two need
    a finite space, and as objectives one of `val_accuracy` and `val_loss`, and one that is known before any training:
    `latency_ms`, `params` or `macs`. `auto` is `front` where these are given, the space has at most 2,000 combinations
    of values, and no setting is there that only samplers have (`sampler`, `num_trials`, `scheduler`, ...)."""
    sampler: Literal["tpe", "nsga2", "gp", "random", "grid"] = "tpe"
    """Optuna sampler; `grid` goes through the whole space in order."""
    num_trials: int = Field(20, ge=1)
    """Configurations that a sampler may try; the search ends earlier when the space is used up. A later session may
    raise it."""
    max_epochs: Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, le=1)] = 0.15
    """front, moasha: epochs to train in all; with a decimal point, a share of what the whole grid would take, but at
    least what the strategy begins with. A later session may raise it."""
    min_gain: float = Field(0.002, ge=0, lt=1)
    """front: the search ends when, for the epochs of two full trainings, no configuration was expected to add so much
    to the front's hypervolume, over what that is."""
    rungs: tuple[Annotated[int, Field(ge=1)], ...] | None = Field(None, min_length=1, strict=False)
    """front, moasha: epochs after which a trial may pause, ascending; the last one must be `train.epochs`. By default
    that, a third of it (moasha: one in `reduction_factor`), and so on, as long as the warm-up is over by then; with
    less than 9 epochs, none but the last."""
    paused_gib: float = Field(10.0, ge=0)
    """front, moasha: disk that checkpoints of trials that pause may take, in GiB. Above it, those of the least expected
    gain are dropped; should such a trial go on, it begins anew."""
    max_hours: float | None = Field(None, gt=0)
    """Wall-clock time for the search, all sessions together: when it is up, no further batch begins. Default: none."""
    startup_trials: int | None = Field(None, ge=1)
    """Trials before tpe and gp learn from results, and the population of nsga2. By default a quarter of the trials, at
    least 4 and at most 10 (nsga2: 50)."""
    points_to_evaluate: tuple[dict[str, Scalar], ...] = Field((), strict=False)
    """Points to try first, each with a value for every dimension of the space."""
    scheduler: Literal["fifo", "asha", "median"] = "fifo"
    """Which of Ray Tune's schedulers ends trials before their last epoch, where the one objective is `val_accuracy` or
    `val_loss`: `asha` keeps the best of those that got as far (asynchronous successive halving), `median` those that
    are better than the median, `fifo` all."""
    grace_epochs: int | None = Field(None, ge=1)
    """asha and median end no trial before it has done so many. By default those of the warm-up, at least 1."""
    reduction_factor: int = Field(4, ge=2)
    """asha, moasha: one in so many goes on at each rung; rungs are so many times as many epochs apart."""
    min_samples: int = Field(3, ge=1)
    """median: a trial is compared with so many others at least."""
    suggestion_batch: int = Field(8, ge=1)
    """Suggestions that are made at a time, before any of their results is known: their latency is measured together,
    while no trial trains. At least twice the concurrent trials."""

    @property
    def is_for_sampler(self) -> bool:
        """Whether a setting is given that strategies other than `sampler` do not have."""
        return not _OF_SAMPLERS.isdisjoint(self.model_fields_set)

    @property
    def lets_trials_pause(self) -> bool:
        """Whether the strategy does, at rungs, to go on with those that are worth it."""
        return self.strategy in ("front", "moasha")

    def startup(self) -> int:
        """`startup_trials`, or its default."""
        # Optuna's defaults are made for hundreds of trials: in a small sweep a tenth to a quarter explores at first.
        limit = 50 if self.sampler == "nsga2" else 10
        return self.startup_trials or min(limit, max(4, self.num_trials // 4))


_OF_SAMPLERS = frozenset(
    (
        "sampler", "num_trials", "startup_trials", "points_to_evaluate", "scheduler", "grace_epochs", "min_samples",
        "suggestion_batch",
    )
)  # fmt: skip
"""Settings of `SearchConfig` that nothing else reads."""

MOST_COMBINATIONS = 2000
"""Of a space that `front` is the default for: up to here a decision takes some tenths of a second."""

_TRAINED = (("val_accuracy", "maximize"), ("val_loss", "minimize"))
_KNOWN = (("latency_ms", "minimize"), ("params", "minimize"), ("macs", "minimize"))
"""Objectives of the strategies that pause trials: one of the first, one of the second."""

STACKED_SEEDS_ON_GPU = 8
"""Default of `max_stacked_seeds` on a GPU."""


class ResourcesConfig(Config):
    """What one trial takes."""

    workers_per_trial: int = Field(1, ge=1)
    """Ranks of one training run; above 1 they are DDP workers of Ray Train."""
    cpus_per_trial: int = Field(1, ge=1)
    """CPU cores of one trial, shared evenly by its workers."""
    gpus_per_trial: Annotated[float, Field(ge=0)] | Literal["auto"] = 0.0
    """GPUs of one trial, shared evenly by its workers; a fraction shares a GPU among trials. `auto` measures on one of
    the GPUs at the start, with the largest network of the space, how many trials together train most (about a minute);
    each worker of DDP trials gets a whole one. Where there is no GPU, it is 0."""
    max_concurrent_trials: int | None = Field(None, ge=1)
    """Trials at a time; by default as many as fit."""
    max_stacked_seeds: int | None = Field(None, ge=1)
    """Runs that differ by their seeds alone, such as those of a finalist, trained in one step of stacked parameters, at
    most; by default 8 on a GPU and 1 on CPUs, which do not gain by it. DDP runs train alone."""
    placement: Literal["pack", "spread"] = "pack"
    """The workers of a trial on as few nodes of a cluster as they fit, or spread over them. Trials of one worker go
    where Ray has room."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.cpus_per_trial % self.workers_per_trial:
            raise ValueError(
                "cpus_per_trial must be a multiple of workers_per_trial, but got "
                f"cpus_per_trial={self.cpus_per_trial}, workers_per_trial={self.workers_per_trial}"
            )
        if self.gpus > 1 and self.gpus % 1:
            raise ValueError(f"gpus_per_trial must be whole or below 1, but got gpus_per_trial={self.gpus_per_trial}")
        if self.gpus and self.workers_per_trial > 1 and self.gpus % self.workers_per_trial:
            raise ValueError(
                "gpus_per_trial must be a multiple of workers_per_trial, but got "
                f"gpus_per_trial={self.gpus_per_trial}, workers_per_trial={self.workers_per_trial}"
            )
        return self

    @property
    def gpus(self) -> float:
        """`gpus_per_trial`; as long as `auto` is not resolved, a whole GPU for each worker."""
        return float(self.workers_per_trial if self.gpus_per_trial == "auto" else self.gpus_per_trial)

    def stacked_seeds(self) -> int:
        """`max_stacked_seeds`, with its default."""
        if self.workers_per_trial > 1:
            return 1
        return self.max_stacked_seeds or (STACKED_SEEDS_ON_GPU if self.gpus else 1)


class FinalistsConfig(Config):
    """The front's configurations trained again, at the full budget, and tested once."""

    max_finalists: int = Field(5, ge=0)
    """Configurations of the front to retrain, spread evenly along it."""
    epochs: int | None = Field(None, ge=1)
    """Epochs of each; by default those of the trials."""
    seeds: tuple[Seed, ...] = Field((0, 1, 2), min_length=1, strict=False)
    """One training run for each configuration and seed."""
    resources: ResourcesConfig | None = None
    """What one run takes; by default what a trial does."""
    include: tuple[dict[str, Scalar], ...] = Field((), strict=False)
    """Points to retrain whether or not they are on the front, each with a value for every dimension of the space: the
    members and controls of a committee, say. The search tries them first."""

    _distinct = field_validator("seeds")(distinct)


class AnalysisStageConfig(AnalysisConfig):
    """The analysis of every finalist, a Ray task for each."""

    enabled: bool = True
    """Whether to do it."""
    cpus_per_task: int | None = Field(None, ge=1)
    """CPU cores of one task; by default those of one of a finalist's workers."""
    gpus_per_task: float | None = Field(None, ge=0, le=1)
    """GPUs of one task; by default those of one of a finalist's workers."""

    def plain(self) -> AnalysisConfig:
        """The analysis itself, without what it takes."""
        return AnalysisConfig.model_validate({name: getattr(self, name) for name in AnalysisConfig.model_fields})


class CommitteesConfig(Config):
    """Committees of finalists, from their stored logits."""

    enabled: bool = True
    """Whether to form them."""
    rules: tuple[Rule, ...] = Field(("softmax", "logits", "majority"), min_length=1, strict=False)
    """What is summed: softmax outputs, logits, or votes. Curves over the committee size follow the first."""
    max_exhaustive: int = Field(12, ge=2, le=12)
    """Up to this many members, curves go through every committee of each size; beyond, through the order of a greedy
    selection by validation accuracy."""
    resamples: int = Field(2000, ge=100)
    """Bootstrap resamples of the test images behind each interval."""

    _distinct = field_validator("rules")(distinct)


class RunConfig(Config):
    """What to train on what, and how; common to a single training run and a sweep."""

    data: DataConfig = DataConfig()
    """Images and their split."""
    model: ModelConfig = ModelConfig()
    """Architecture. Image size, channels and labels come from the data."""
    train: TrainConfig = TrainConfig()
    """Recipe."""

    @field_validator("model", mode="before")
    @classmethod
    def _data_defined(cls, model: Any) -> Any:
        if isinstance(model, dict):
            for name in DATA_DEFINED:
                if name in model:
                    raise ValueError(f"{name} follows from the data and cannot be set, but got {model[name]!r}")
        return model


class SweepConfig(RunConfig):
    """A whole sweep. `space` replaces fields of `model` and `train`."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")
    """Name of the sweep; the default run folder is `runs/<name>`."""
    seed: Seed = 0
    """Seed of the search."""
    space: dict[str, Dimension] = Field(min_length=1)
    """Fields of `model` and `train` to search: a list of choices, or a range with low and high."""
    objectives: tuple[ObjectiveConfig, ...] = Field(
        (
            ObjectiveConfig(metric="val_accuracy", direction="maximize"),
            ObjectiveConfig(metric="latency_ms", direction="minimize"),
        ),
        min_length=1,
        strict=False,
    )
    """Axes of the front."""
    search: SearchConfig = Field(SearchConfig(), validate_default=True)
    """How configurations are proposed."""
    latency: LatencyConfig = LatencyConfig()
    """How latency is measured."""
    resources: ResourcesConfig = ResourcesConfig()
    """What one trial takes."""
    finalists: FinalistsConfig = FinalistsConfig()
    """What is done with the front."""
    analysis: AnalysisStageConfig = AnalysisStageConfig()
    """What is read out of the finalists."""
    committees: CommitteesConfig = CommitteesConfig()
    """How finalists decide together."""
    pruning: PruningConfig = PruningConfig()
    """What `lsmha-sweep prune` does with them; a run itself prunes nothing."""
    loggers: tuple[LoggerName, ...] = Field((), strict=False)
    """Experiment trackers that get hyperparameters, metrics and the plot of the front, each by an extra of the same
    name: `pip install "lsmha-sweep[mlflow]"`. A later session may have others."""

    _distinct_loggers = field_validator("loggers")(distinct)

    @field_validator("search")
    @classmethod
    def _with_strategy(cls, search: SearchConfig, info: ValidationInfo) -> SearchConfig:
        space, objectives = info.data.get("space"), info.data.get("objectives")
        if search.strategy != "auto" or space is None or objectives is None:
            return search
        fits = _trained_and_known(objectives) and _combinations(space) <= MOST_COMBINATIONS
        strategy = "front" if fits and not search.is_for_sampler else "sampler"
        return search.model_copy(update={"strategy": strategy})

    @field_validator("objectives")
    @classmethod
    def _distinct(cls, objectives: tuple[ObjectiveConfig, ...]) -> tuple[ObjectiveConfig, ...]:
        metrics = [objective.metric for objective in objectives]
        if len(set(metrics)) < len(metrics):
            raise ValueError(f"each metric may appear once, but got {metrics}")
        return objectives

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name, dimension in self.space.items():
            check_dimension(name, dimension)
        if self.finalist_epochs() < self.train.warmup_epochs:
            raise ValueError(
                "finalists.epochs >= train.warmup_epochs must hold, but got "
                f"finalists.epochs={self.finalist_epochs()}, train.warmup_epochs={self.train.warmup_epochs}"
            )
        if self.latency.mode == "cuda-graph" and not self.latency_on_gpu():
            raise ValueError(
                "latency.mode: must be eager or compiled where latency is measured on CPUs, but got 'cuda-graph'"
            )
        if self.train.mode == "cuda-graph" and not min(self.resources.gpus, self.finalist_resources().gpus):
            raise ValueError("train.mode: must be eager or compiled where trials have no GPU, but got 'cuda-graph'")
        self._check_early_stopping()
        self._check_strategy()
        if self.search.sampler == "grid":
            self._check_discrete("sampler grid")
        for field, points in (
            ("search.points_to_evaluate", self.search.points_to_evaluate),
            ("finalists.include", self.finalists.include),
        ):
            for point in points:
                if set(point) != set(self.space):
                    raise ValueError(
                        f"{field}: each point needs exactly the keys {sorted(self.space)}, but got {sorted(point)}"
                    )
        if not self.search.lets_trials_pause and len(self.finalists.include) > self.search.num_trials:
            raise ValueError(
                "search.num_trials must cover finalists.include, but got "
                f"num_trials={self.search.num_trials} for {len(self.finalists.include)} points"
            )
        return self

    def _check_early_stopping(self) -> None:
        search, metrics = self.search, [objective.metric for objective in self.objectives]
        if search.scheduler != "fifo" and metrics not in (["val_accuracy"], ["val_loss"]):
            raise ValueError(
                f"search.scheduler: must be fifo where the objectives are {' and '.join(metrics)} ({search.scheduler} "
                f"compares trials by val_accuracy or val_loss alone), but got {search.scheduler!r}"
            )
        if search.scheduler != "fifo" and self.grace_epochs() > self.train.epochs:
            raise ValueError(
                "search.grace_epochs <= train.epochs must hold, but got "
                f"search.grace_epochs={search.grace_epochs}, train.epochs={self.train.epochs}"
            )

    def _check_strategy(self) -> None:
        search = self.search
        if not search.lets_trials_pause:
            return
        if not _trained_and_known(self.objectives):
            listed = " and ".join(f"{o.metric} ({o.direction})" for o in self.objectives)
            raise ValueError(
                f"search.strategy: must be sampler where the objectives are {listed} (the others need one of "
                "val_accuracy, to maximize, and val_loss, and one of latency_ms, params and macs, to minimize), but "
                f"got {search.strategy!r}"
            )
        self._check_discrete(f"search.strategy {search.strategy}")
        if search.scheduler != "fifo":
            raise ValueError(
                f"search.scheduler: must be fifo for search.strategy {search.strategy}, which says itself how far each "
                f"trial trains, but got {search.scheduler!r}"
            )
        if search.points_to_evaluate:
            raise ValueError(
                f"search.points_to_evaluate: must be empty for search.strategy {search.strategy} (finalists.include "
                f"has points trained to their end), but got {len(search.points_to_evaluate)} points"
            )
        rungs = search.rungs
        if rungs is not None and (list(rungs) != sorted(set(rungs)) or rungs[-1] != self.train.epochs):
            raise ValueError(f"search.rungs: must ascend to train.epochs={self.train.epochs}, but got {list(rungs)}")

    def _check_discrete(self, what: str) -> None:
        for name, dimension in self.space.items():
            if isinstance(dimension, FloatRange):
                raise ValueError(
                    f"space.{name}: must be a list or a range of whole numbers for {what}, "
                    f"but got low={dimension.low}, high={dimension.high}"
                )

    def with_startup_of(self, other: SweepConfig) -> SweepConfig:
        """These settings with what the sampler of `other` starts with, unless they say: more trials change nothing of
        what was proposed."""
        if self.search.startup_trials is not None:
            return self
        search = self.search.model_copy(update={"startup_trials": other.search.startup()})
        return self.model_copy(update={"search": search})

    def with_absolute_data_path(self) -> SweepConfig:
        """These settings, with a data path that means the same in every working folder."""
        path = self.data.path
        if path is None or "://" in path or path.startswith("~"):
            return self
        return self.model_copy(update={"data": self.data.model_copy(update={"path": os.path.abspath(path)})})

    def latency_on_gpu(self) -> bool:
        """Whether latency is measured on a GPU: by default where trials train on one."""
        return self.latency.device == "cuda" or (self.latency.device == "auto" and self.resources.gpus > 0)

    def trained_objective(self) -> ObjectiveConfig | None:
        """The first objective that training improves."""
        return next((o for o in self.objectives if o.metric in ("val_accuracy", "val_loss")), None)

    def seeks_low_latency(self) -> bool:
        """Whether latency is one of the objectives."""
        return any(objective.metric == "latency_ms" for objective in self.objectives)

    def finalist_resources(self) -> ResourcesConfig:
        """What one finalist's training run takes."""
        return self.finalists.resources or self.resources

    def analysis_resources(self) -> tuple[int, float]:
        """CPU cores and GPUs of the analysis of one finalist."""
        training = self.finalist_resources()
        cpus, gpus = (total / training.workers_per_trial for total in (training.cpus_per_trial, training.gpus))
        asked = self.analysis
        return (
            int(cpus) if asked.cpus_per_task is None else asked.cpus_per_task,
            gpus if asked.gpus_per_task is None else asked.gpus_per_task,
        )

    def grace_epochs(self) -> int:
        """`search.grace_epochs`, or its default."""
        return self.search.grace_epochs or max(1, math.ceil(self.train.warmup_epochs))

    def finalist_recipe(self, train: TrainConfig, seed: int) -> TrainConfig:
        """That of a finalist with a seed, whose trial had the recipe `train`."""
        return train.model_copy(update={"seed": seed, "epochs": self.finalist_epochs()})

    def finalist_epochs(self) -> int:
        """Epochs of a finalist's training run."""
        return self.finalists.epochs or self.train.epochs


def sweep_schema() -> dict[str, Any]:
    """JSON schema of a sweep's YAML, for editors."""
    schema = SweepConfig.model_json_schema()
    dimension = schema["properties"]["space"]["additionalProperties"]
    dimension["anyOf"] = dimension.pop("oneOf")  # {low: 1, high: 3} reads as a range of either kind of number
    return schema


def searchable_fields() -> dict[str, type[Config]]:
    """Names that `space` may use, with the settings they belong to. Not `epochs`: budgets must be equal to compare."""
    model = {name: ModelConfig for name in ModelConfig.model_fields if name not in DATA_DEFINED}
    train = {name: TrainConfig for name in TrainConfig.model_fields if name not in ("epochs", "seed", "augment")}
    return {**model, **train}


def _trained_and_known(objectives: Sequence[ObjectiveConfig]) -> bool:
    """Whether of two objectives one is trained for, and one known before."""
    asked = [(objective.metric, objective.direction) for objective in objectives]
    return len(asked) == 2 and any(o in _TRAINED for o in asked) and any(o in _KNOWN for o in asked)


def _combinations(space: Mapping[str, Dimension]) -> float:
    """How many combinations of values there are, valid or not."""
    sizes = []
    for dimension in space.values():
        match dimension:
            case IntRange(low=low, high=high, step=step):
                sizes.append((high - low) // step + 1)
            case FloatRange():
                return math.inf
            case choices:
                sizes.append(len(choices))
    return math.prod(sizes)


def check_dimension(name: str, dimension: Dimension) -> None:
    """Raise ValueError unless each value of the dimension is one that the field takes, and appears once."""
    fields = searchable_fields()
    if name not in fields:
        raise ValueError(f"space: must name fields out of {', '.join(sorted(fields))}, but got {name!r}")
    values = [dimension.low, dimension.high] if isinstance(dimension, IntRange | FloatRange) else dimension
    for value in values:
        try:
            # The field alone: what several fields must fulfil together is the search space's business.
            fields[name].__pydantic_validator__.validate_assignment(fields[name].model_construct(), name, value)
        except ValidationError as error:
            own = [problem for problem in error.errors() if problem["loc"]]
            if own:
                raise ValueError(f"space.{name}: {own[0]['msg'].lower()}, but got {value!r}") from None
    if isinstance(dimension, list) and len(set(dimension)) < len(dimension):
        raise ValueError(f"space.{name}: each choice may appear once, but got {dimension}")
