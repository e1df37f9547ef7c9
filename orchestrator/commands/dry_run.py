"""`run --dry-run`: what a sweep would do, without doing it."""

from __future__ import annotations

from rich.console import Console

from lsmha.data import Dataset
from orchestrator.cluster.capacity import Capacity, check_capacity, concurrent_trials, trials_per_node
from orchestrator.cluster.connect import connect
from orchestrator.commands.preflight import check_analysis, check_batches, load_data
from orchestrator.config.sweep import ResourcesConfig, SweepConfig
from orchestrator.execution.gpu_sharing import without_gpus
from orchestrator.search.build import build_space, build_study, num_trials
from orchestrator.search.space import SearchSpace, describe_point


def show_plan(config: SweepConfig, console: Console, *, address: str | None, proposals: int = 8) -> None:
    """Print the space's size, the first proposals, and the resource plan; train and write nothing.

    Raises:
        UserError: As `run_sweep` would.
    """
    build_space(config)
    dataset = load_data(config.data, console, quiet=False)
    check_batches(config, dataset)
    if config.analysis.enabled:
        check_analysis("analysis", config.analysis.readout, dataset)
    space = build_space(config, dataset)
    study = build_study(config, space)
    with connect(address) as capacity:
        config = without_gpus(config, capacity)
        check_capacity(config, capacity)
        _print_plan(config, space, dataset, capacity, console)
    shown = [proposal for proposal in (study.ask() for _ in range(proposals)) if proposal]
    console.print("first proposals:")
    for proposal in shown:
        console.print(f"  {describe_point(proposal.point)}", highlight=False, soft_wrap=True)


def _print_plan(
    config: SweepConfig, space: SearchSpace, dataset: Dataset, capacity: Capacity, console: Console
) -> None:
    size = f"{len(space.points):,} configurations" if space.is_finite else "continuous"
    console.print(
        f"data: {dataset.name}, {len(dataset.train):,} train, {len(dataset.val):,} validation, "
        f"{len(dataset.test):,} test images, {dataset.num_classes} labels\n"
        f"space: {size}; sampler {config.search.sampler}, {num_trials(config, space)} trials of "
        f"{config.train.epochs} epochs",
        highlight=False,
        soft_wrap=True,
    )
    console.print(f"cluster: {capacity}", highlight=False, soft_wrap=True)
    console.print(_describe_resources("trials", config.resources, capacity), highlight=False, soft_wrap=True)
    runs = (config.finalists.max_finalists + len(config.finalists.include)) * len(config.finalists.seeds)
    if runs:
        console.print(
            f"{_describe_resources('finalists', config.finalist_resources(), capacity)}; up to {runs} runs of "
            f"{config.finalist_epochs()} epochs",
            highlight=False,
            soft_wrap=True,
        )


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
