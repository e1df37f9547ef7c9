"""Sweeps whose run folder is on an object store: the command line, real Ray, a server that speaks S3."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from object_server import BUCKET, ObjectServer
from PIL import Image
from running_sweep import Sweep, assert_nothing_lost, assert_refused, write_spec

from lsmha.config import DataConfig
from lsmha.data import load_dataset
from lsmha.errors import DataError
from lsmha.io.paths import path_of
from orchestrator.cli import main
from orchestrator.run_folder.lease import LEASE_S

Here = Callable[..., tuple[int, str, str]]

NUM_TRIALS = 6

SECTIONS: dict[str, Any] = {
    "train": {"epochs": 10, "batch_size": 20, "precision": "fp32"},
    "search": {"sampler": "tpe", "num_trials": NUM_TRIALS, "suggestion_batch": 3},
    "finalists": {"max_finalists": 1, "seeds": [0, 1]},
    "analysis": {"permutations": 10, "readout": {"max_train_images": 50}},
}
"""Some trials, two finalist runs, their analyses and committee."""


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectServer]:
    """An object store that this process and those that it starts reach by their environment."""
    server = ObjectServer()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield server
    server.stop()


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Here:
    """Does a command of `lsmha-sweep` in this process; returns exit code, output and errors."""

    def do(*arguments: Any) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["lsmha-sweep", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit:
            main()
        return exit.value.code, *capsys.readouterr()

    return do


CLUSTER = """
import sys
from orchestrator.cluster.local_cluster import given_time, system_config
import ray
with given_time():
    context = ray.init(
        address="local", num_cpus=2, num_gpus=0, include_dashboard=False, log_to_driver=False,
        _system_config=system_config(dashboard=False),
    )
print(context.address_info["gcs_address"], flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def cluster(server: ObjectServer, warm: dict[str, str]) -> Iterator[str]:
    """Address of a cluster whose workers reach the store: they have the environment that it was started in."""
    process = subprocess.Popen(
        [sys.executable, "-c", CLUSTER],
        env={**os.environ, **warm, "RAY_AUTH_MODE": "disabled"},  # sweeps may be forked where no token is known
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    yield process.stdout.readline().strip()
    process.communicate()


def trials(server: ObjectServer, run: str) -> list[str]:
    return [name for name in server.names(run) if name.startswith("records/trials/")]


def read(run: str, name: str) -> Any:
    """A file of a run: rows of a table, or JSON."""
    content = path_of(f"{run}/{name}").read_bytes()
    return json.loads(content) if name.endswith(".json") else pd.read_parquet(io.BytesIO(content))


def one_line(errors: str) -> str:
    (line,) = errors.splitlines()
    assert line.startswith("error: ")
    return line


def test_a_sweep_survives_a_kill_and_the_loss_of_its_store(
    server: ObjectServer, cluster: str, here: Here, tmp_path: Path
) -> None:
    reference = Sweep(tmp_path, cluster, run=tmp_path / "reference", **SECTIONS)
    reference.complete()
    url = f"s3://{BUCKET}/runs/one"
    (tmp_path / "sessions").mkdir()
    sweep = Sweep(tmp_path / "sessions", cluster, run=path_of(url), environment=server.environment, **SECTIONS)

    # Killed: the next session need not wait for the lease of a process that it can see is gone.
    session = sweep.start()
    session.wait_until(lambda: trials(server, "runs/one"))
    os.kill(session.process.pid, signal.SIGSTOP)  # or it may have ended before it is looked at
    code, _, errors = here("repair", url)
    assert code == 2
    assert f"in use by process {session.process.pid} on" in one_line(errors)
    session.process.kill()
    session.wait()
    assert "owner.json" in server.names("runs/one")
    assert "is gone" in here("status", url)[1]

    # Without its store: one line, whoever meets that first, the driver or a worker.
    before = trials(server, "runs/one")
    server.lose_with("runs/one/records/trials", len(before) + 1)
    try:
        ended = sweep.do(*sweep.again("resume"))
        assert_refused(ended, 3, f"s3://{BUCKET}/", f"lsmha-sweep resume {url}")
        server.stop()
        code, _, errors = here("resume", url)
        assert code == 2
        assert url in one_line(errors)
    finally:
        server.start()
    kept = sweep.records()
    assert len(kept) == len(before) + 1 < NUM_TRIALS

    sweep.complete(*sweep.again("resume"))
    assert {name: sweep.records()[name] for name in kept} == kept
    names = server.names("runs/one")
    assert [name for name in names if "/." in name or name.startswith((".", "owner", "checkpoints"))] == []
    assert_nothing_lost(server.download("runs/one", tmp_path / "copy"), reference.run)

    # Everything that works on runs works on this one.
    table = read(url, "trials.parquet")
    assert list(table["id"]) == [f"t{number:04d}" for number in range(NUM_TRIALS)]
    assert (table["status"] == "completed").all()
    assert set(read(url, "finalists.parquet")["trial"]) <= set(table["id"])
    assert len(read(url, "analysis.parquet")) > 0
    for command, words in (
        ("status", "complete"),
        ("front", "Finalists"),
        ("repair", f"{NUM_TRIALS} trials"),
        ("committee", url),
    ):
        code, output, errors = here(command, url)
        assert code == 0, errors
        assert words in output
    assert read(url, "summary.json")["complete"] is True


@pytest.fixture
def begun(server: ObjectServer, tmp_path: Path) -> str:
    """A run that has begun, as far as its settings say."""
    spec = write_spec(tmp_path / "space.yaml", **SECTIONS)
    run = path_of(f"s3://{BUCKET}/runs/{tmp_path.name}")
    (run / "config.yaml").write_bytes(spec.read_bytes())
    return str(run)


def lease(run: str, **owner: Any) -> None:
    """The lease of an owner on another machine."""
    content = {"host": "elsewhere", "pid": 1, "machine": "another", "started": "1", "token": "theirs", **owner}
    (path_of(run) / "owner.json").write_bytes(json.dumps(content).encode())


@pytest.mark.parametrize(("seconds", "code"), [(0, 2), (LEASE_S + 1, 0)])
def test_a_lease_is_respected_until_it_is_over(
    server: ObjectServer, begun: str, here: Here, seconds: float, code: int
) -> None:
    lease(begun)
    server.age(begun.removeprefix(f"s3://{BUCKET}/") + "/owner.json", seconds)
    ended, _, errors = here("repair", begun)
    assert ended == code, errors
    if code:
        assert "in use by process 1 on elsewhere" in one_line(errors)
        assert json.loads((path_of(begun) / "owner.json").read_bytes())["token"] == "theirs"
    else:
        assert not (path_of(begun) / "owner.json").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "{spec}", "--out", "{url}"),
        ("train", "cct_2_3x2_32", "--out", "{url}"),
        ("resume", "{url}"),
        ("status", "{url}"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_bucket_that_is_not_there(
    server: ObjectServer, here: Here, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    monkeypatch.setattr("ray.init", lambda **_: pytest.fail("Ray was started"))
    spec, url = write_spec(tmp_path / "space.yaml", **SECTIONS), "s3://nowhere/run"
    code, _, errors = here(*(argument.format(spec=spec, url=url) for argument in arguments))
    assert code == 2
    assert url in one_line(errors)
    if "--out" in arguments:
        assert "The specified bucket does not exist" in errors


def test_a_data_set_is_read_from_the_store(server: ObjectServer) -> None:
    folder = path_of(f"s3://{BUCKET}/data")
    for split, labels, offset in (("train", [0, 1] * 10, 1), ("test", [0, 1], 0)):
        # Each of its own: images that are in two splits are refused.
        levels = [100 * label + offset * (1 + number) for number, label in enumerate(labels)]
        images = [{"bytes": png(level), "path": None} for level in levels]
        table = pa.table({"img": images, "label": labels})
        pq.write_table(table, buffer := io.BytesIO(), row_group_size=4)
        (folder / f"{split}-00000.parquet").write_bytes(buffer.getvalue())
    for path in (str(folder), f"{folder}/", f"{folder}/*-0*.parquet"):
        dataset = load_dataset(DataConfig(name="parquet", path=path, img_size=4))
        assert (len(dataset.train) + len(dataset.val), len(dataset.test)) == (20, 2)
        assert dataset.test.images[1].unique().tolist() == [100]
    for path, words in (("s3://nowhere/data", "data.path"), (f"s3://{BUCKET}/none", "matches nothing")):
        with pytest.raises(DataError, match=words):
            load_dataset(DataConfig(name="parquet", path=path))
    with pytest.raises(DataError, match="must be a local path"):
        load_dataset(DataConfig(name="cifar10", path=str(folder)))


def png(level: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (level, level, level)).save(buffer, "png")
    return buffer.getvalue()
