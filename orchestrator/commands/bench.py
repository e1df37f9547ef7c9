"""`lsmha-sweep bench`: training throughput on this machine, beside what a user would take instead."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table as RichTable

from lsmha.bench.baselines import timm_adamw, vit_pytorch_cct
from lsmha.bench.report import Report, Table
from lsmha.bench.training_step import compare_training, tables
from lsmha.errors import MissingBaselineError
from orchestrator.commands.preflight import torch_device, variant_config
from orchestrator.errors import UserError
from orchestrator.run_folder.location import check_output_folder
from orchestrator.terminal import Terminal

PROTOCOL = """Training steps of one network at batch {batch_size}. Each candidate trains in a process of its own,
only one at a time and by turns; a ratio is of two candidates in the same repeat. Values are medians over {repeats}
repeats (lowest to highest), after a warm-up; a measurement takes about 3 s, or one step where that takes longer.

vit-pytorch's network trains in a plain loop, by torch's AdamW as it comes, on batches that are in memory already,
normalized. lsmha trains as in a sweep: images are gathered, flipped, shifted and normalized in the step, precision and
attention kernel are those of `auto`, the allocator has the settings of its workers. Images are random: the cost does
not depend on them."""
PROTOCOL_OF_TIMM = """

timm's loop is vit-pytorch's network with timm's AdamW under bf16 autocast, on images by timm's loader (random crops and
flips of images in memory, 4 processes or as many as there are cores, the prefetcher on a GPU), or on batches that are
on the device already."""


def bench_training(
    variants: list[str],
    terminal: Terminal,
    *,
    batch_size: int,
    repeats: int,
    device: str,
    with_timm: bool,
    out: Path | None,
) -> None:
    """Measure, print the tables, and write them to `out`.md and `out`.json.

    Raises:
        UserError: An option is not valid, or vit-pytorch or timm is not installed.
    """
    configs = [variant_config(name, field="--variants") for name in variants]
    for name, value in (("--batch-size", batch_size), ("--repeats", repeats)):
        if value < 1:
            raise UserError(f"{name}: must be at least 1, but got {value}")
    device = torch_device(device).type
    if out is not None:
        check_output_folder(out.parent)
    try:
        network = vit_pytorch_cct(configs[0].model_copy(update={"depth": 1}))
        if with_timm:
            timm_adamw(network, learning_rate=1e-3, weight_decay=0.0)
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
        with terminal.console.status("measuring") as status:
            speeds, speedups = compare_training(
                variants,
                batch_size=batch_size,
                repeats=repeats,
                device=device,
                with_timm=with_timm,
                on_repeat=status.update,
            )
    except MissingBaselineError as error:
        raise UserError(str(error)) from None
    report = Report(
        title="Training step",
        protocol=PROTOCOL.format(batch_size=batch_size, repeats=repeats) + (PROTOCOL_OF_TIMM if with_timm else ""),
        command=f"lsmha-sweep bench --variants {','.join(variants)} --batch-size {batch_size} --repeats {repeats} "
        f"--device {device}{' --timm' if with_timm else ''}",
        tables=tables(speeds, speedups),
        results={"speeds": speeds, "speedups": speedups},
    )
    for table in report.tables:
        terminal.show(_shown(table))
    if out is not None:
        report.write(out)
        terminal.say(f"written: {out}.md, {out}.json")


def _shown(table: Table) -> RichTable:
    shown = RichTable()
    for index, name in enumerate(table.header):
        shown.add_column(name, justify="left" if index < 2 else "right", overflow="fold")
    for cells in table.rows:
        shown.add_row(*(cell.strip("`") for cell in cells))
    return shown
