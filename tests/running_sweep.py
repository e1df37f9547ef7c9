"""Sweeps in processes of their own, and what must hold whatever happened to them."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import optuna
import psutil
from background import PATIENCE_S, wait_for
from faults import Fault
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from ruamel.yaml import YAML
from safetensors.torch import load_file
from tiny_data import assert_same_bits

from lsmha.io.checksums import read_checked
from lsmha.io.tables import read_table
from orchestrator.run_folder.record_files import StoredRecord, read_record

SWEEP = {
    "name": "faults",
    "data": {"name": "digits", "max_train_images": 200},
    "model": {"embed_dim": 16, "mlp_ratio": 1.0, "attention": "materialized"},
    "train": {"epochs": 8, "batch_size": 20, "precision": "fp32"},
    "space": {
        "num_heads": [1, 2, 4, 8],
        "depth": [1, 2, 3],
        "learning_rate": {"low": 0.0003, "high": 0.01, "log": True},
    },
    # Nothing depends on a measured time, so the same seed gives the same sweep.
    "objectives": [
        {"metric": "val_accuracy", "direction": "maximize"},
        {"metric": "params", "direction": "minimize"},
    ],
    "search": {"sampler": "tpe", "num_trials": 8, "suggestion_batch": 4},
    "latency": {"min_iterations": 3, "max_seconds": 0.05, "warmup_s": 0.0, "rounds": 1},
    "finalists": {"max_finalists": 0, "seeds": [0]},
    "committees": {"resamples": 100},
}
"""Eight trials of about a second, of which the last four are proposed from what the first ones gave."""

WITH_FINALISTS = {"finalists": {"max_finalists": 2, "seeds": [0]}}
"""Sections for SWEEP that let it go through all stages."""

_forkserver = multiprocessing.get_context("forkserver")
_forkserver.set_forkserver_preload(
    [
        "orchestrator.commands.repair",
        "orchestrator.commands.run",
        "orchestrator.commands.status",
        "orchestrator.commands.train",
    ]
)


class Reference(NamedTuple):
    """An undisturbed run."""

    run: Path
    seconds: float
    """From the start of its session to the end."""


class Ended(NamedTuple):
    """How a session ended."""

    code: int
    output: str
    errors: str


class Session:
    """A command of `lsmha-sweep` in a process of its own, forked where everything is imported already."""

    def __init__(
        self,
        *arguments: Any,
        log: Path,
        address: str,
        fault: Fault | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._files = log.with_suffix(".out"), log.with_suffix(".err")
        # Set by Ray when it starts a cluster; the server that forks may have been there before.
        token = {name: value for name, value in os.environ.items() if name == "RAY_AUTH_MODE"}
        variables = {**token, **(environment or {}), "RAY_ADDRESS": address}
        self.process = _forkserver.Process(
            target=_command, args=([str(argument) for argument in arguments], self._files, variables, fault)
        )
        self.process.start()

    def output(self) -> str:
        """All that it has said so far."""
        return "".join(file.read_text() for file in self._files if file.exists())

    def wait(self, seconds: float = PATIENCE_S) -> Ended:
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
            raise AssertionError(f"still running after {seconds} s:\n{self.output()}")
        return Ended(self.process.exitcode, *(file.read_text() for file in self._files))

    def wait_until(self, condition: Callable[[], Any], seconds: float = PATIENCE_S) -> Any:
        """Wait while the session runs; returns what the condition found."""

        def found_or_ended() -> Any:
            found = condition()
            assert found or self.process.is_alive(), self.output()
            return found

        return wait_for(found_or_ended, "what the session should do", seconds, said=self.output, every_s=0.02)


def _command(arguments: list[str], files: tuple[Path, Path], environment: dict[str, str], fault: Fault | None) -> None:
    import ray

    from orchestrator import cli

    os.setsid()
    for descriptor, file in zip((1, 2), files, strict=True):
        os.dup2(os.open(file, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), descriptor)
    os.environ.update(environment)
    ray._raylet.Config.initialize("")  # it has read the environment when it was imported
    sys.argv = [cli.__file__, *arguments]
    if fault is not None:
        fault.install_in_driver()
    cli.main()


class Sweep:
    """A sweep's YAML, its run folder (`run`, or one beside it), and sessions of it on the cluster at `address`.

    What is in `environment` is added to that of the sessions.
    """

    def __init__(
        self,
        folder: Path,
        address: str,
        *,
        run: Path | None = None,
        environment: Mapping[str, str] | None = None,
        **sections: Any,
    ) -> None:
        self.spec, self.run = write_spec(folder / "space.yaml", **sections), run or folder / "run"
        self._logs = (folder / f"session-{number}" for number in count())
        self._address, self._environment = address, environment

    def start(self, *arguments: Any, fault: Fault | None = None) -> Session:
        """Start a command; by default, the run."""
        return Session(
            *(arguments or self.again("run")),
            log=next(self._logs),
            address=self._address,
            fault=fault,
            environment=self._environment,
        )

    def do(self, *arguments: Any, fault: Fault | None = None) -> Ended:
        """Do a command to its end, whatever that is; by default, the run."""
        return self.start(*arguments, fault=fault).wait()

    def complete(self, *arguments: Any) -> str:
        """Do a command (by default, the run) that must succeed; returns what it said."""
        ended = self.do(*arguments)
        assert ended.code == 0, ended
        return ended.output

    def again(self, command: str) -> list[Any]:
        """The arguments that go on with the run by one of the two commands that do so."""
        return ["run", self.spec, "--out", self.run] if command == "run" else ["resume", self.run]

    def copy_of(self, run: Path) -> None:
        """Take over a run."""
        shutil.copytree(run, self.run)

    def records(self, kind: str = "trials") -> dict[str, StoredRecord]:
        """Readable records by name."""
        return records(self.run, kind)

    def file_of(self, name: str, kind: str = "trials") -> Path:
        """The file of a record."""
        (path,) = (self.run / "records" / kind).glob(f"{name}-*.json")
        return path


class RunningSweep:
    """A sweep as a user starts it, on a cluster of its own; `piped` into a `tee`, or without one; `env` is added."""

    def __init__(
        self, folder: Path, *, piped: bool = False, env: Mapping[str, str] | None = None, **sections: Any
    ) -> None:
        spec = write_spec(folder / "space.yaml", **sections)
        self.folder = folder / "run"
        self._mark = f"SWEEP_MARK={folder}".encode()
        self._log = folder / "output"
        command = [sys.executable, "-m", "orchestrator.cli", "run", str(spec), "--out", str(self.folder)]
        self._tee = None
        if piped:
            self._tee = subprocess.Popen(["tee", self._log], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        with self._tee.stdin if self._tee else self._log.open("w") as output:
            self.process = subprocess.Popen(
                [*command, "--address", "local"],
                env={**os.environ, **(env or {}), "SWEEP_MARK": str(folder)},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def signal_group(self, number: signal.Signals) -> None:
        """What a terminal does: the sweep's Ray cluster gets the signal, too, and a `tee` before it."""
        if self._tee is not None:
            self._tee.send_signal(number)
            self._tee.wait()
        os.killpg(self.process.pid, number)

    def output(self) -> str:
        return self._log.read_text()

    def records(self) -> dict[str, StoredRecord]:
        return records(self.folder, "trials")

    def wait_until(self, condition: Callable[[], Any], seconds: float = PATIENCE_S) -> Any:
        return wait_for(condition, "what the sweep should do", seconds, said=self.output)

    def processes(self, title: str = "") -> list[int]:
        """Ids of the live processes of this sweep, its Ray cluster included, with `title` in their command line."""
        return [
            process
            for process in map(int, filter(str.isdecimal, os.listdir("/proc")))
            if self._owns(process) and (command := _read(process, "cmdline")) and title.encode() in command
        ]

    def _owns(self, process: int) -> bool:
        # A process that gives itself a title overwrites its environment, one that begins a session leaves this one.
        session = _read(process, "stat").rpartition(b")")[2].split()[3:4]
        return session == [b"%d" % self.process.pid] or self._mark in _read(process, "environ").split(b"\0")


def _read(process: int, name: str) -> bytes:
    """What the kernel says of a process; nothing where it has ended."""
    try:
        return Path(f"/proc/{process}/{name}").read_bytes()
    except OSError:
        return b""


def write_spec(path: Path, **sections: Any) -> Path:
    """SWEEP, with the sections given replaced, as a sweep's YAML."""
    with path.open("w") as file:
        YAML(typ="safe", pure=True).dump({**SWEEP, **sections}, file)
    return path


def records(run: Path, kind: str) -> dict[str, StoredRecord]:
    """Records by name, each whole and there once."""
    found: dict[str, StoredRecord] = {}
    for path in sorted((run / "records" / kind).glob("[!.]*.json")):
        record = read_record(path)
        assert record.name not in found, f"{record.name} is recorded twice"
        found[record.name] = record
    return found


def snapshot(folder: Path) -> dict[Path, bytes | None]:
    """Contents of files by path; None for folders."""
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def flip_bit(file: Path, seed: int) -> None:
    """Damage a file by one bit of a random byte."""
    content = bytearray(file.read_bytes())
    rng = random.Random(seed)
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)


def own_processes(title: str) -> list[int]:
    """Ids of the live processes with that in their title that this process, or a child of it, started."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if title in " ".join(process.cmdline()):
                found.append(process.pid)
    return found


def table(run: Path, name: str) -> list[dict[str, Any]]:
    """Rows of an intact table."""
    return read_table(run / f"{name}.parquet").to_pylist()


def assert_refused(ended: Ended, code: int, *words: str) -> None:
    """It ended with that code and one line, which has those words."""
    assert ended.code == code, ended
    assert ended.errors.count("\n") == 1, ended.errors
    line = ended.errors
    for word in ("error: ", *words):
        assert word in line
    assert "Traceback" not in ended.output


def assert_nothing_lost(run: Path, reference: Path) -> None:
    """Every trial and finalist of the undisturbed run is there, once, with its result; there is no other, nor a trace.

    And all that follows from them says so: tables, front, study, summary.
    """
    for kind in ("trials", "finalists"):
        assert _results(run, kind) == _results(reference, kind)
        assert [row["id"] for row in table(run, kind)] == list(records(reference, kind))
    assert _front(run) == _front(reference)
    assert _curves(run) == _curves(reference)
    assert_study_holds(run)
    summary, expected = (json.loads((folder / "summary.json").read_text()) for folder in (run, reference))
    assert summary["complete"] is True
    for name in ("trials", "finalist_runs", "front", "analyses", "hypervolume"):
        assert summary[name] == expected[name]
    for name in records(reference, "finalists"):
        for file in ("model", "val_logits", "test_logits"):
            path = Path("finalists", name, f"{file}.safetensors")
            read_checked(run / path, required=False)
            # Not byte by byte: metadata come in any order.
            assert_same_bits(load_file(run / path), load_file(reference / path))
    for kind in ("analyses", "committees"):
        assert records(run, kind).keys() == records(reference, kind).keys()
    assert list((run / "checkpoints").glob("[!.]*")) == []


def assert_study_holds(run: Path) -> None:
    """The study has each recorded trial once, those that pause as pruned, and no other."""
    study = optuna.load_study(
        study_name=SWEEP["name"], storage=JournalStorage(JournalFileBackend(str(run / "study.journal")))
    )
    states = {"completed": TrialState.COMPLETE, "stopped": TrialState.PRUNED, "failed": TrialState.FAIL}
    pauses = {record.content["id"]: TrialState.PRUNED for record in records(run, "pauses").values()}
    ended = {name: states[record.content["status"]] for name, record in records(run, "trials").items()}
    recorded = sorted({**pauses, **ended}.items())
    assert [(trial.user_attrs["id"], trial.state) for trial in study.trials] == recorded


def _results(run: Path, kind: str) -> list[tuple[Any, ...]]:
    names = ("id", "status", "point", "epochs", "val_accuracy", "val_loss", "test_accuracy", "test_loss", "error")
    return [tuple(record.content[name] for name in names) for record in records(run, kind).values()]


def _front(run: Path) -> list[tuple[Any, ...]]:
    return [(row["id"], row["val_accuracy"], row["params"]) for row in table(run, "front")]


def _curves(run: Path) -> list[tuple[Any, ...]]:
    return [tuple(row[name] for name in ("id", "epoch", "train_loss", "val_accuracy")) for row in table(run, "curves")]
