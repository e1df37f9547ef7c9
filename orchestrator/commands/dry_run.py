"""`run --dry-run`: what a sweep would do, without doing it."""

from __future__ import annotations

from orchestrator.cluster.capacity import Capacity, check_capacity, concurrent_trials, trials_per_node
from orchestrator.cluster.connect import ClusterChoice
from orchestrator.commands.preflight import PreparedSweep, prepare_sweep
from orchestrator.commands.session import session
from orchestrator.config.sweep import ResourcesConfig, SweepConfig
from orchestrator.execution.gpu_sharing import resolve_gpu_share
from orchestrator.loggers.experiment_loggers import check_loggers
from orchestrator.search.build import epochs_to_train, num_trials, rungs_of
from orchestrator.search.front.decide import Opening
from orchestrator.search.space import SearchSpace, describe_point
from orchestrator.stages.space_latency import measured_first
from orchestrator.terminal import Terminal


def show_plan(config: SweepConfig, terminal: Terminal, cluster: ClusterChoice, *, proposals: int = 8) -> None:
    """Print the space's size, the first proposals, and the resource plan; train and write nothing.

    Raises:
        UserError: As `run_sweep` would.
    """
    check_loggers(config.loggers)
    prepared = prepare_sweep(config, terminal)
    resolved = config

    def fits(capacity: Capacity) -> None:
        nonlocal resolved
        resolved = resolve_gpu_share(config, prepared.space, capacity, measure=None)
        check_capacity(resolved, capacity)

    with session(None, terminal, cluster=cluster, again="repeat the command", fits=fits) as begun:
        terminal.say("\n".join(_plan(prepared, resolved, begun.capacity)))
    if config.search.lets_trials_pause:
        return  # it decides by latency, which is not measured yet
    shown = [proposal for proposal in (prepared.study.ask() for _ in range(proposals)) if proposal]
    terminal.say("first proposals:")
    for proposal in shown:
        terminal.say(f"  {describe_point(proposal.point)}")


def _plan(prepared: PreparedSweep, config: SweepConfig, capacity: Capacity) -> list[str]:
    space, dataset = prepared.space, prepared.dataset
    size = f"{len(space.points):,} configurations" if space.is_finite else "continuous"
    lines = [
        f"data: {dataset.name}, {len(dataset.train):,} train, {len(dataset.val):,} validation, "
        f"{len(dataset.test):,} test images, {dataset.num_classes} labels",
        f"space: {size}; {_describe_search(config, space)}",
        *_describe_rungs(config, space),
        _describe_latency(config, space),
        f"cluster: {capacity}",
        _describe_resources("trials", config.resources, capacity),
    ]
    runs = (config.finalists.max_finalists + len(config.finalists.include)) * len(config.finalists.seeds)
    if runs:
        resources = _describe_resources("finalists", config.finalist_resources(), capacity)
        lines.append(f"{resources}; up to {runs} runs of {config.finalist_epochs()} epochs")
    return lines


def _describe_search(config: SweepConfig, space: SearchSpace) -> str:
    search, epochs = config.search, config.train.epochs
    if not search.lets_trials_pause:
        return f"sampler {search.sampler}, {num_trials(config, space)} trials of {epochs} epochs"
    rungs, grid = rungs_of(config), epochs * len(space.points)
    budget = epochs_to_train(config, len(space.points))
    pauses = f"that pause after {', '.join(map(str, rungs[:-1]))} " * bool(rungs[:-1]) + f"of {epochs} epochs"
    cost = f"{budget:,} epochs at most, {budget / grid:.1%} of the grid's {grid:,}"
    return f"strategy {search.strategy}, trials {pauses}; {cost}"


def _describe_rungs(config: SweepConfig, space: SearchSpace) -> list[str]:
    if config.search.strategy != "front":
        return []
    rungs = rungs_of(config)
    opening = Opening.of(len(space.points), rungs)
    lines = [f"  screen: {opening.screened} configurations, to epoch {rungs[0]}: {opening.screen_epochs:,} epochs"]
    if opening.anchors:
        lines.append(f"  anchors: {opening.anchors} of them, to epoch {rungs[-1]}: {opening.anchor_epochs:,} epochs")
    left = epochs_to_train(config, len(space.points)) - opening.epochs
    steps = " or ".join(str(to - start) for start, to in zip((0, *rungs), rungs, strict=False))
    return [*lines, f"  then by expected gain, {steps} epochs at a time: {left:,} epochs at most"]


def _describe_latency(config: SweepConfig, space: SearchSpace) -> str:
    first = measured_first(config, space)
    return f"latency: of {f'all {len(first)} architectures first' if first else 'each batch before it trains'}"


def _describe_resources(title: str, resources: ResourcesConfig, capacity: Capacity) -> str:
    whole = max(trials_per_node(resources, capacity), default=0)
    if resources.workers_per_trial > 1 and (resources.placement == "spread" or not whole):
        packed = "across nodes"
    else:
        packed = f"up to {whole} per node"
    return (
        f"{title}: {resources.workers_per_trial} worker(s), {resources.cpus_per_trial} CPU(s) and "
        f"{resources.gpus:g} GPU(s) each, {concurrent_trials(resources, capacity)} at a time, {packed}"
        f"{'; how many share a GPU is measured at the start' if resources.gpus_per_trial == 'auto' else ''}"
    )
