"""The command line: `lsmha-sweep`.

Each command imports what it does when it is called, so that `--help`, and what is wrong in a file, need not wait for
torch and Ray, which take seconds to load.
"""

from __future__ import annotations

import json
import logging
import signal
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from pydantic import ValidationError

from orchestrator.config.validation import describe_validation_error
from orchestrator.errors import ExitCode, Interrupted, SweepError, UserError, print_error
from orchestrator.run_folder.location import location
from orchestrator.standard_streams import bear_with_readers
from orchestrator.storage_errors import describe_storage_error, storage_error_in
from orchestrator.terminal import Terminal

# Typer imports click or brings a copy of it, by version.
_UsageError = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")

app = typer.Typer(
    name="lsmha-sweep",
    help="Maps how accurate and how fast small hybrid vision transformers can be.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

SpaceArgument = Annotated[Path, typer.Argument(metavar="SPACE.yaml", help="The sweep's YAML file.")]
# Folders are text here: a Path would take the scheme of a URL for a folder.
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="Folder of a run, or its URL (s3://, gs://).")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=VALUE", help="Replace one setting of the YAML; may be repeated."),
]
DashboardOption = Annotated[bool, typer.Option("--dashboard", help="Start Ray's dashboard with a local cluster.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]
AddressOption = Annotated[
    str | None,
    typer.Option(
        help="Ray cluster to join. Default: RAY_ADDRESS, else a cluster started on this machine, else a new local one."
    ),
]


@app.command(
    epilog="Examples:\n\nlsmha-sweep run search_spaces/quickstart.yaml\n\n"
    "lsmha-sweep run search_spaces/cifar10-small.yaml --set data.path=/data/cifar10 --set search.max_epochs=0.3"
)
def run(
    space: SpaceArgument,
    out: Annotated[
        str | None,
        typer.Option(
            help="Run folder, or its URL (s3://, gs://); one of the same sweep goes on. Default: runs/<name>."
        ),
    ] = None,
    set_: SetOption = None,
    address: AddressOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the space's size, the first proposals and the resource plan.")
    ] = False,
    dashboard: DashboardOption = False,
    quiet: QuietOption = False,
) -> None:
    """Search a space, retrain the front's configurations, test them, and write it all to a run folder."""
    from orchestrator.config.yaml import load_sweep_config

    config = load_sweep_config(space, set_)
    from orchestrator.cluster.connect import ClusterChoice
    from orchestrator.commands.dry_run import show_plan
    from orchestrator.commands.run import run_sweep

    if dry_run:
        show_plan(config, Terminal(), ClusterChoice(address))
        return
    folder = Path("runs") / config.name if out is None else location(out, field="--out")
    cluster = ClusterChoice(address, dashboard)
    raise typer.Exit(run_sweep(config, folder.absolute(), Terminal(quiet=quiet), cluster))


@app.command(
    epilog="Examples:\n\nlsmha-sweep resume runs/quickstart\n\n"
    "lsmha-sweep resume runs/quickstart --set search.num_trials=40 --set finalists.seeds='[0, 1, 2]'"
)
def resume(
    run: RunArgument,
    set_: SetOption = None,
    address: AddressOption = None,
    dashboard: DashboardOption = False,
    quiet: QuietOption = False,
) -> None:
    """Go on with a run that was interrupted, or let it grow: more trials, more time, further finalists or seeds."""
    from orchestrator.run_folder.ledger import check_run, load_run_config

    folder = location(run)
    check_run(folder)
    config = load_run_config(folder, set_)
    from orchestrator.cluster.connect import ClusterChoice
    from orchestrator.commands.run import run_sweep

    cluster = ClusterChoice(address, dashboard)
    raise typer.Exit(run_sweep(config, folder.absolute(), Terminal(quiet=quiet), cluster))


@app.command(epilog="Example: lsmha-sweep repair runs/quickstart")
def repair(run: RunArgument) -> None:
    """Check a run's files, set aside what is damaged, and make tables, study and plot again from the records."""
    from orchestrator.commands.repair import repair_run

    repair_run(location(run).absolute(), Terminal())


@app.command(epilog="Example: lsmha-sweep validate search_spaces/pareto.yaml")
def validate(space: SpaceArgument, set_: SetOption = None) -> None:
    """Check a sweep's YAML and count its configurations, without touching data or cluster."""
    from orchestrator.config.yaml import load_sweep_config
    from orchestrator.search.build import build_space, build_study

    config = load_sweep_config(space, set_)
    built = build_space(config)
    build_study(config, built)
    size = f"{len(built.points):,} configurations" if built.is_finite else "a continuous space"
    typer.echo(f"{space}: valid, {size}")


@app.command(epilog="Example: lsmha-sweep schema > sweep.schema.json")
def schema() -> None:
    """Print the JSON schema of a sweep's YAML, for editors."""
    from orchestrator.config.sweep import sweep_schema

    typer.echo(json.dumps(sweep_schema(), indent=2))


@app.command(epilog="Example: lsmha-sweep status runs/quickstart")
def status(run: RunArgument) -> None:
    """Show the progress of a run, while it runs or after."""
    from orchestrator.commands.status import show_status

    show_status(location(run), Terminal())


@app.command(epilog="Example: lsmha-sweep front runs/quickstart")
def front(run: RunArgument) -> None:
    """Print the Pareto front and the finalists of a run."""
    from orchestrator.reporting.tables import show_results
    from orchestrator.run_folder.ledger import Ledger

    show_results(Ledger.load(location(run)), Terminal())


@app.command(
    epilog="Examples:\n\nlsmha-sweep train cct_2_3x2_32 --data digits --epochs 5 --out runs/one\n\n"
    "lsmha-sweep train cct_7_3x1_32 --data cifar100 --workers 4 --gpus 4 --set model.num_heads=64 --out runs/heads64"
)
def train(
    variant: Annotated[str, typer.Argument(metavar="VARIANT", help="Published variant, such as cct_7_3x1_32.")],
    out: Annotated[str, typer.Option(help="Folder for weights, curve and test logits; new or empty; or its URL.")],
    data: Annotated[str, typer.Option(help="Name of the data set.")] = "digits",
    data_path: Annotated[str | None, typer.Option(help="Its folder or file.")] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the training images.")] = 10,
    seed: Annotated[int, typer.Option(help="Seed of the run.")] = 0,
    workers: Annotated[int, typer.Option(help="Ranks that train together (DDP).")] = 1,
    cpus: Annotated[int | None, typer.Option(help="CPU cores in all. Default: one for each worker.")] = None,
    gpus: Annotated[float, typer.Option(help="GPUs in all.")] = 0,
    set_: SetOption = None,
    address: AddressOption = None,
    quiet: QuietOption = False,
) -> None:
    """Train and test one network through Ray Train, without a search."""
    from orchestrator.cluster.connect import ClusterChoice
    from orchestrator.commands.train import train_one

    settings = {"data.name": data, "train.epochs": epochs, "train.seed": seed}
    if data_path is not None:
        settings["data.path"] = data_path
    cpus = workers if cpus is None else cpus
    resources = {"workers_per_trial": workers, "cpus_per_trial": cpus, "gpus_per_trial": float(gpus)}
    code = train_one(
        variant,
        location(out, field="--out").absolute(),
        Terminal(quiet=quiet),
        ClusterChoice(address),
        settings=settings,
        overrides=set_ or [],
        resources=resources,
    )
    raise typer.Exit(code)


@app.command(
    epilog="Examples:\n\nlsmha-sweep latency cct_2_3x2_32\n\n"
    "lsmha-sweep latency cct_7_3x1_32 --num-heads 1,4,64,256 --batch-sizes 1,128 --device cuda"
)
def latency(
    variant: Annotated[str, typer.Argument(metavar="VARIANT", help="Published variant, such as cct_7_3x1_32.")],
    num_heads: Annotated[str | None, typer.Option(help="Head counts to compare, such as 1,4,16.")] = None,
    num_conv_blocks: Annotated[str | None, typer.Option(help="Conv block counts to compare, such as 0,2,4.")] = None,
    batch_sizes: Annotated[str, typer.Option(help="Batch sizes, such as 1,128.")] = "1",
    dtype: Annotated[str, typer.Option(help="fp32 or bf16.")] = "fp32",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    mode: Annotated[str, typer.Option(help="eager, compiled or cuda-graph.")] = "eager",
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
    rounds: Annotated[int, typer.Option(help="Fresh processes for each network, taken by turns.")] = 3,
) -> None:
    """Measure inference latency of a variant on this machine; keep it idle meanwhile (see docs/latency.md)."""
    from orchestrator.commands.latency import show_latencies

    show_latencies(
        variant, Terminal(), num_heads=num_heads, num_conv_blocks=num_conv_blocks,
        settings={"batch_sizes": batch_sizes, "dtype": dtype, "device": device, "mode": mode, "threads": threads,
                  "rounds": rounds},
    )  # fmt: skip


@app.command(
    epilog="Examples:\n\nlsmha-sweep analyze runs/quickstart --set analysis.threshold=0.5\n\n"
    "lsmha-sweep analyze runs/quickstart/finalists/t0003-s0\n\n"
    "lsmha-sweep analyze cct_7_3x1_32_c100.pth --num-heads 4 --data cifar100"
)
def analyze(
    target: Annotated[
        str,
        typer.Argument(metavar="RUN|CHECKPOINT", help="Run folder, folder of a trained network, or published weights."),
    ],
    num_heads: Annotated[int | None, typer.Option(help="Heads of published weights, which do not tell.")] = None,
    out: Annotated[str | None, typer.Option(help="Folder for a checkpoint's results.")] = None,
    data: Annotated[str | None, typer.Option(help="Data set of a checkpoint.")] = None,
    data_path: Annotated[str | None, typer.Option(help="Its folder or file.")] = None,
    set_: SetOption = None,
    address: AddressOption = None,
    quiet: QuietOption = False,
) -> None:
    """Read out of trained networks what each head, node and filter recognizes, and how clearly."""
    from orchestrator.cluster.connect import ClusterChoice
    from orchestrator.commands.analyze import analyze_checkpoint, analyze_run

    network, terminal, cluster = location(target, field="RUN|CHECKPOINT"), Terminal(quiet=quiet), ClusterChoice(address)
    if (network / "config.yaml").is_file():
        for name, value in (("--num-heads", num_heads), ("--out", out), ("--data", data), ("--data-path", data_path)):
            if value is not None:
                raise UserError(f"{name}: only for a checkpoint, since a run knows its own, but got {str(value)!r}")
        raise typer.Exit(analyze_run(network, set_ or [], terminal, cluster))
    asked = {name: value for name, value in (("name", data), ("path", data_path)) if value is not None}
    code = analyze_checkpoint(
        network,
        None if out is None else location(out, field="--out"),
        set_ or [],
        terminal,
        cluster,
        num_heads=num_heads,
        data=asked,
    )
    raise typer.Exit(code)


@app.command(
    epilog="Examples:\n\nlsmha-sweep committee runs/quickstart\n\n"
    "lsmha-sweep committee runs/heads runs/cnns --out runs/heads-and-cnns"
)
def committee(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Folders of runs over the same test set.")],
    out: Annotated[str | None, typer.Option(help="Folder for the committees of several runs.")] = None,
    quiet: QuietOption = False,
) -> None:
    """Form committees of the finalists from their stored logits, and say what they gain."""
    from orchestrator.commands.committee import show_committees

    folders, folder = [location(run) for run in runs], None if out is None else location(out, field="--out")
    raise typer.Exit(show_committees(folders, folder, Terminal(quiet=quiet)))


@app.command(
    epilog="Examples:\n\nlsmha-sweep prune runs/quickstart\n\n"
    "lsmha-sweep prune runs/quickstart --finalist t0003-s0 --set pruning.thresholds='[0.2, 0.4]'"
)
def prune(
    run: RunArgument,
    finalist: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="Finalist run to prune; may be repeated. Default: all.")
    ] = None,
    set_: SetOption = None,
    address: AddressOption = None,
    quiet: QuietOption = False,
) -> None:
    """Prune finalists by what their units recognize, retrain them, and compare with random pruning as sparse."""
    from orchestrator.cluster.connect import ClusterChoice
    from orchestrator.commands.prune import prune_run

    terminal = Terminal(quiet=quiet)
    raise typer.Exit(prune_run(location(run), finalist or [], set_ or [], terminal, ClusterChoice(address)))


@app.command(
    epilog="Examples:\n\nlsmha-sweep bench\n\n"
    "lsmha-sweep bench --variants cct_7_3x1_32 --device cuda --repeats 9 --out results/h100"
)
def bench(
    variants: Annotated[str, typer.Option(help="Published variants.")] = "cct_2_3x2_32,cct_7_3x1_32",
    batch_size: Annotated[int, typer.Option(help="Images per training step.")] = 128,
    repeats: Annotated[int, typer.Option(help="Measurements of each candidate.")] = 5,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    timm: Annotated[bool, typer.Option("--timm", help="Beside timm's training loop, too (pip install timm).")] = False,
    out: Annotated[str | None, typer.Option(metavar="STEM", help="Also write STEM.md and STEM.json.")] = None,
) -> None:
    """Measure training throughput here, beside vit-pytorch's network in a plain loop (pip install vit-pytorch).

    Takes some minutes; keep the machine idle meanwhile.
    """
    from orchestrator.commands.bench import bench_training

    bench_training(
        variants.split(","), Terminal(), batch_size=batch_size, repeats=repeats, device=device, with_timm=timm,
        out=None if out is None else Path(out),
    )  # fmt: skip


def main() -> None:
    """Entry point: every foreseeable failure is one line on standard error and an exit code of its own."""
    bear_with_readers()
    # It warns of a home that cannot be written, and does without.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    try:
        code = app(standalone_mode=False)
    except SweepError as error:
        _fail(str(error), error.exit_code)
    except ValidationError as error:
        _fail(describe_validation_error(error), ExitCode.BAD_INPUT)
    except Interrupted as signaled:
        sys.exit(signaled.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        _fail("interrupted", 128 + signal.SIGINT)
    except Exception as error:
        if isinstance(error, _UsageError):
            _fail(_describe_usage_error(error), ExitCode.BAD_INPUT)
        storage_error = storage_error_in(error)
        if storage_error is not None and "://" in str(storage_error.filename):  # a store that did not answer
            _fail(describe_storage_error(storage_error), ExitCode.STORAGE)
        raise
    sys.exit(code if isinstance(code, int) else 0)


def _describe_usage_error(error: Any) -> str:
    """Typer's message on one line, with the value that it leaves out for numbers."""
    message = " ".join(error.format_message().split())
    for option in getattr(getattr(error, "param", None), "opts", ()):
        if option in sys.argv[:-1]:
            value = sys.argv[sys.argv.index(option) + 1]
            if value not in message:
                return f"{message}, but got {value!r}"
    return message


def _fail(message: str, code: int) -> NoReturn:
    print_error(message)
    sys.exit(code)


if __name__ == "__main__":
    main()
