"""`lsmha-sweep repair`: a run folder checked against its checksums, and what follows from the records made again."""

from __future__ import annotations

from collections.abc import Iterator

from lsmha.errors import DamagedFileError
from lsmha.io.checksums import read_checked
from lsmha.io.paths import RunPath
from lsmha.io.tables import read_table
from lsmha.training.checkpoints import checkpoint_files
from orchestrator.commands.session import session
from orchestrator.reporting.artifacts import write_artifacts
from orchestrator.run_folder.ledger import Ledger, remove_abandoned
from orchestrator.run_folder.status_file import mark_stage
from orchestrator.terminal import Terminal


def repair_run(folder: RunPath, terminal: Terminal) -> None:
    """Set aside what is damaged, make tables, study and plots again from the records, and say what was found.

    Nothing is deleted but half-written files: damaged ones go to `damaged/`. What they held is done again by the next
    session of the run.

    Raises:
        UserError: It is not the folder of a run, or in use.
        StorageError: The folder cannot be written.
    """
    Ledger.load(folder, on_damaged=lambda _: None)  # refuses what is no run, before anything is written
    with session(folder, terminal, cluster=None, again="the same command goes on"):
        found = list(_repair(folder.absolute()))
        lost = any(line.startswith("set aside") for line in found)
        if lost:
            mark_stage(folder, "interrupted")
        ledger = Ledger.load(folder)
        ledger.write_config(ledger.config)
        write_artifacts(ledger, {"complete": False} if lost else None)
    trials, finalists = len(ledger.trials), len(ledger.finalists)
    found.append(f"{trials} trials, {finalists} finalist runs and {len(ledger.analyses)} analyses are recorded")
    found.append("config.yaml, tables, study, plot and summary are made again from them")
    terminal.say("\n".join(found))


def _repair(folder: RunPath) -> Iterator[str]:
    """Set aside, one by one, what is damaged; yields a line for each."""
    for path in remove_abandoned(folder):
        yield f"removed: {path.relative_to(folder)}, half written by a process that was killed"
    damaged: list[RunPath] = []
    ledger = Ledger.load(folder, on_damaged=damaged.append)
    for path in damaged:
        yield f"set aside: {_set_aside(path, folder)} is damaged; what it held will be done again"
    for record in ledger.finalists:
        if record.completed and (reason := _what_is_wrong(ledger.finalist_folder(record.id))):
            _set_aside(ledger.record_path(record), folder)
            yield f"set aside: the record of finalist {record.id}, which will be trained again: {reason}"
    for path in sorted((folder / "checkpoints").glob("*.pt")):
        try:
            read_checked(path)
        except DamagedFileError:
            yield f"set aside: {_set_aside(path, folder)} is damaged; the checkpoint before it counts, if there is one"
    for trial in ledger.pauses:
        if not any(file.is_file() for file in checkpoint_files(ledger.checkpoint_path(trial))):
            how = "was dropped, as search.paused_gib was used up" if ledger.is_dropped(trial) else "is missing"
            yield f"missing: the checkpoint of {trial}, which pauses, {how}; should it go on, it begins anew"
    for path in sorted(folder.glob("*.parquet")):
        try:
            read_table(path)
        except DamagedFileError:
            yield f"damaged: {_set_aside(path, folder)}, which is made again"


def _what_is_wrong(finalist: RunPath) -> str | None:
    """Which of a trained finalist's files is missing or damaged."""
    for name in ("config.json", "model.safetensors", "val_logits.safetensors", "test_logits.safetensors"):
        try:
            read_checked(finalist / name)
        except FileNotFoundError:
            return f"{name} is missing"
        except DamagedFileError:
            return f"{name} is damaged"
    return None


def _set_aside(path: RunPath, folder: RunPath) -> str:
    """Move a file to the same place under `damaged/`; returns its old place, relative to the run."""
    place = path.relative_to(folder).as_posix()
    target = folder / "damaged" / place
    target.parent.mkdir(parents=True, exist_ok=True)
    path.replace(target)
    return place
