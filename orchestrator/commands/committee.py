"""`lsmha-sweep committee`: committees of the finalists of one run, or of several over the same test set."""

from __future__ import annotations

from collections.abc import Sequence

from lsmha.io.paths import RunPath
from lsmha.io.tables import write_table
from orchestrator.commands.session import session
from orchestrator.errors import ExitCode, UserError
from orchestrator.reporting.plots import plot_committees
from orchestrator.reporting.summary import write_summary
from orchestrator.reporting.tables import committees_table
from orchestrator.run_folder.ledger import Ledger
from orchestrator.run_folder.location import check_output_folder
from orchestrator.stages.committee_groups import load_members
from orchestrator.stages.committees import form_committees, record_committees
from orchestrator.terminal import Terminal


def show_committees(runs: Sequence[RunPath], out: RunPath | None, terminal: Terminal) -> ExitCode:
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
    first = ledgers[0]
    folder = out or first.folder
    check_output_folder(folder)
    members = load_members(ledgers)
    if len(members) < 2:
        raise UserError(f"RUN: at least two trained finalists make a committee, but got {len(members)}")
    owned = None if out is not None else folder
    with session(owned, terminal, cluster=None, again="repeat the command") as begun:
        begun.progress.stage("committees", 1, unit=f"pool of {len(members)} members")
        rows = form_committees(
            members,
            first.config.committees,
            seed=first.config.seed,
            on_progress=lambda done, total: begun.progress.part("committees", "groups", done, total),
        )
        if out is None:
            record_committees(first, rows)
            write_summary(first)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            write_table(folder / "committees.parquet", [row.row() for row in rows])
            title = " + ".join(ledger.config.name for ledger in ledgers)
            plot_committees(rows, folder / "committees.png", title=title)
    terminal.show(committees_table(rows))
    terminal.say(f"folder: {folder}")
    return ExitCode.COMPLETE
