"""`lsmha-sweep committee`: committees of the finalists of one run, or of several over the same test set."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from lsmha.io.paths import RunPath
from lsmha.io.tables import write_table
from orchestrator.errors import UserError
from orchestrator.interrupts import interrupts_as_exceptions
from orchestrator.reporting.committee_plot import plot_committees
from orchestrator.reporting.progress import sweep_progress
from orchestrator.reporting.report import write_summary
from orchestrator.reporting.tables import committees_table
from orchestrator.run_folder.ledger import Ledger
from orchestrator.run_folder.location import check_output_folder
from orchestrator.run_folder.ownership import owned
from orchestrator.stages.committee_groups import load_members
from orchestrator.stages.committees import form_committees, record_committees
from orchestrator.storage_errors import storage_errors_in_one_line


def show_committees(runs: Sequence[RunPath], out: RunPath | None, console: Console, *, quiet: bool) -> int:
    """Form the committees, write `committees.parquet` and `committees.png`, and print the groups.

    They go into the run folder, for several runs into `out`; settings and seed are those of the first run.

    Raises:
        UserError: A folder is no run, fewer than two finalists are trained, or they are of different test sets.
    """
    ledgers = [Ledger.load(run) for run in runs]
    if len({ledger.folder.resolve() for ledger in ledgers}) < len(ledgers):
        raise UserError(f"RUN: each run may be named once, but got {' '.join(map(str, runs))}")
    if len(runs) > 1 and out is None:
        raise UserError("--out: must name a folder for the committees of several runs, but is not given")
    check_output_folder(out or ledgers[0].folder)
    members = load_members(ledgers)
    if len(members) < 2:
        raise UserError(f"RUN: at least two trained finalists make a committee, but got {len(members)}")
    first = ledgers[0]
    with interrupts_as_exceptions(), sweep_progress(console, lambda: Text(""), quiet=quiet) as progress:
        progress.stage("committees", 1, unit=f"pool of {len(members)} members")
        rows = form_committees(
            members,
            first.config.committees,
            seed=first.config.seed,
            on_progress=lambda done, total: progress.part("committees", "groups", done, total),
        )
        folder = out or first.folder
        if out is None:
            with storage_errors_in_one_line("nothing recorded is lost"), owned(folder):
                record_committees(first, rows)
                write_summary(first)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            write_table(folder / "committees.parquet", rows)
            plot_committees(rows, folder / "committees.png", title=" + ".join(one.config.name for one in ledgers))
    if not quiet:
        console.print(committees_table(rows))
        console.print(f"folder: {folder}", markup=False, highlight=False, soft_wrap=True)
    return 0
