"""`lsmha-sweep latency`: one variant timed on this machine, for several head counts and numbers of conv blocks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Any

import torch
from rich.table import Table

from lsmha.config import LatencyConfig, ModelConfig
from lsmha.errors import LatencyError
from lsmha.latency import LatencyMeasurement, Measured, Round, measure_in_rounds, measure_round
from lsmha.models import model_cost
from orchestrator.commands.preflight import torch_device, variant_config
from orchestrator.config.validation import validated
from orchestrator.errors import UserError
from orchestrator.terminal import Terminal

_COLUMNS = (
    "num_heads",
    "conv blocks",
    "batch",
    "ms / image",
    "interquartile",
    "n",
    "attention",
    "params",
    "MACs",
)


def show_latencies(
    variant: str,
    terminal: Terminal,
    *,
    num_heads: str | None,
    num_conv_blocks: str | None,
    settings: dict[str, Any],
) -> None:
    """Measure a variant on this machine, for each head count and number of conv blocks, and print the table.

    Raises:
        UserError: An option is not valid, or a combination is not a valid architecture.
    """
    base = variant_config(variant)
    sizes = _integers("--batch-sizes", settings["batch_sizes"])
    config = validated(LatencyConfig, {**settings, "batch_sizes": sizes})
    device = torch_device(config.device)
    if config.mode == "cuda-graph" and device.type != "cuda":
        raise UserError("--mode: must be eager or compiled without a GPU, but got 'cuda-graph'")
    heads = _integers("--num-heads", num_heads) if num_heads else [base.num_heads]
    convs = _integers("--num-conv-blocks", num_conv_blocks) if num_conv_blocks else [base.num_conv_blocks]
    models = [
        validated(ModelConfig, {**base.model_dump(), "num_heads": h, "num_conv_blocks": c})
        for h in heads
        for c in convs
    ]
    measured = _measure(models, config, device, terminal)
    known = [rows for rows in measured if not isinstance(rows, str)]
    if not known:
        raise UserError(f"none of these networks can be measured here: {measured[0]}")
    terminal.show(_table(variant, models, measured, known[0][0]))
    terminal.say(f"Medians of the medians of n fresh processes, and the quartiles of these; {_disturbed(known)}.")


def _measure(
    models: list[ModelConfig], config: LatencyConfig, device: torch.device, terminal: Terminal
) -> list[Measured]:
    made = count(1)
    with terminal.console.status("measuring") as status:

        def make_round(models: Sequence[ModelConfig]) -> Round:
            status.update(f"{len(models)} network(s), round {next(made)} of {config.rounds}")
            return measure_round(models, config, device=device)

        try:
            return measure_in_rounds(make_round, models, config.rounds)
        except LatencyError as error:
            raise UserError(str(error)) from None


def _table(variant: str, models: list[ModelConfig], measured: list[Measured], shown: LatencyMeasurement) -> Table:
    """A row for each network and batch size; `shown` is one of the measurements, for what all have in common."""
    table = Table(
        title=f"{variant} on {shown.device}, {shown.dtype}, {shown.mode}, {shown.threads} thread(s), "
        f"torch {shown.torch_version}",
        title_justify="left",
    )
    for name in _COLUMNS:
        table.add_column(name, justify="right")
    for model, rows in zip(models, measured, strict=True):
        cost = model_cost(model)
        architecture = (str(model.num_heads), str(model.num_conv_blocks))
        if isinstance(rows, str):
            table.add_row(*architecture, "", rows)
            continue
        for row in rows:
            spread = f"{row.latency_p25_ms:.3f}-{row.latency_p75_ms:.3f}"
            measurement = (str(row.batch_size), f"{row.latency_ms:.3f}", spread, str(row.processes))
            table.add_row(*architecture, *measurement, row.attention, f"{cost.params:,}", f"{cost.macs:,}")
    return table


def _disturbed(measured: list[list[LatencyMeasurement]]) -> str:
    if all(row.undisturbed for rows in measured for row in rows):
        return "other work took at most 5 % of the CPUs meanwhile"
    return (
        "other work took more than 5 % of the CPUs meanwhile, so these are too high: measure again on an idle machine"
    )


def _integers(option: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"{option}: must be whole numbers such as 1,4,16, but got {text!r}") from None
