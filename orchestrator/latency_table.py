"""`lsmha-sweep latency`: one variant timed in this process, for several head counts and numbers of conv blocks."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from lsmha.config import LatencyConfig, ModelConfig
from lsmha.latency import measure_latency
from lsmha.models import model_cost
from orchestrator.errors import UserError
from orchestrator.options import torch_device, validated, variant_config


def show_latencies(
    variant: str,
    console: Console,
    *,
    num_heads: str | None,
    num_conv_blocks: str | None,
    settings: dict[str, Any],
) -> None:
    """Measure a variant in this process, for each head count and number of conv blocks, and print the table.

    Raises:
        UserError: An option is not valid, or a combination is not a valid architecture.
    """
    base = variant_config(variant)
    sizes = _integers("--batch-sizes", settings["batch_sizes"])
    config = validated(LatencyConfig, {**settings, "batch_sizes": sizes})
    device = torch_device(config.device)
    heads = _integers("--num-heads", num_heads) if num_heads else [base.num_heads]
    convs = _integers("--num-conv-blocks", num_conv_blocks) if num_conv_blocks else [base.num_conv_blocks]
    models = [
        validated(ModelConfig, {**base.model_dump(), "num_heads": h, "num_conv_blocks": c})
        for h in heads
        for c in convs
    ]
    table = Table(title_justify="left")
    for name in (
        "num_heads",
        "conv blocks",
        "batch",
        "ms / image",
        "interquartile",
        "n",
        "attention",
        "params",
        "MACs",
    ):
        table.add_column(name, justify="right")
    with console.status("measuring") as status:
        for index, model in enumerate(models):
            status.update(f"measuring {index + 1}/{len(models)}")
            cost = model_cost(model)
            for row in measure_latency(model, config, device=device):
                spread = f"{row.latency_p25_ms:.3f}-{row.latency_p75_ms:.3f}"
                cells = (model.num_heads, model.num_conv_blocks, row.batch_size, f"{row.latency_ms:.3f}", spread)
                rest = (row.iterations, row.attention, f"{cost.params:,}", f"{cost.macs:,}")
                table.add_row(*map(str, (*cells, *rest)))
                last = asdict(row)
    table.title = (
        f"{variant} on {last['device']}, {last['dtype']}, {last['threads']} thread(s), torch {last['torch_version']}"
    )
    console.print(table)


def _integers(option: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"{option}: must be whole numbers such as 1,4,16, but got {text!r}") from None
