"""A real cluster by `ray up cluster.local.yaml`: sweeps on it, what is lost with its hosts, and who is kept out."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from background import PATIENCE_S, wait_for
from cluster_hosts import Host, Network, network, why_not
from object_server import BUCKET, ObjectServer
from ray_up import Cluster, prepare_installation
from ruamel.yaml import YAML
from running_sweep import SWEEP

from lsmha.io.paths import path_of
from lsmha.io.tables import read_table
from orchestrator.cluster.ports import ports_to_listen_on

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


EPOCHS = 60
"""Of a trial that shall be under way when something is lost."""


@pytest.fixture(scope="module")
def lan(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    folder = tmp_path_factory.mktemp("lan")
    shared = folder / "shared"
    shared.mkdir()
    with network(folder / "network", shared=shared) as made:
        prepare_installation(made)
        yield made


@pytest.fixture(scope="module")
def bucket(lan: Network) -> Iterator[ObjectServer]:
    """An object store in the hosts' reach, but apart from them."""
    server = ObjectServer(lan.gateway)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield server
    server.stop()


@pytest.fixture(scope="module")
def cluster(lan: Network, bucket: ObjectServer) -> Cluster:
    """A head and a worker of two CPUs each, up."""
    hosts = lan.add_host("head"), [lan.add_host("worker")]
    made = Cluster(lan, *hosts, num_cpus=2, environment=bucket.environment)
    made.up()
    return made


def write_spec(lan: Network, name: str, **sections: Any) -> str:
    """A sweep's YAML where all hosts see it; returns the command that runs it."""
    with open(lan.shared / f"{name}.yaml", "w") as file:
        YAML().dump({**SWEEP, "name": name, **sections}, file)
    return f"lsmha-sweep run /mnt/lsmha/{name}.yaml --out /mnt/lsmha/runs/{name}"


def long_sweep(num_trials: int) -> dict[str, Any]:
    """Sections for trials of some seconds, two on each host at a time."""
    return {"train": {**SWEEP["train"], "epochs": EPOCHS}, "search": {**SWEEP["search"], "num_trials": num_trials}}


def rows(lan: Network, name: str, table: str) -> dict[str, list[Any]]:
    return read_table(lan.shared / "runs" / name / f"{table}.parquet").to_pydict()


def logged(host: Host, pattern: str) -> list[str]:
    """Lines of the workers' logs on a host that match."""
    command = f"grep -rhP --include='worker-*.out' {shlex.quote(pattern)} $RAY_TMPDIR/ray/session_latest/logs/"
    return host.run(command, check=False).stdout.splitlines()


def test_a_sweep_runs_on_both_hosts_and_ddp_across_them(cluster: Cluster, lan: Network) -> None:
    ranks = {"workers_per_trial": 2, "cpus_per_trial": 2, "placement": "spread"}
    command = write_spec(lan, "both", finalists={"max_finalists": 1, "seeds": [0], "resources": ranks})
    cluster.ray("exec", str(cluster.spec), command)
    trials = rows(lan, "both", "trials")
    assert trials["status"] == ["completed"] * SWEEP["search"]["num_trials"]
    assert rows(lan, "both", "finalists")["status"] == ["completed"]
    started = {host.name: logged(host, r"t\d+: started") for host in cluster.hosts}
    assert all(started.values()), started
    assert sum(map(len, started.values())) == len(trials["id"])
    by_host = {host.name: logged(host, r"rank \d of 2") for host in cluster.hosts}
    assert {name: len(lines) for name, lines in by_host.items()} == {"head": 1, "worker": 1}


def test_a_run_folder_that_only_one_host_sees_is_refused(cluster: Cluster, lan: Network) -> None:
    write_spec(lan, "apart")
    done = cluster.head.run("lsmha-sweep run /mnt/lsmha/apart.yaml --out ~/apart; echo code=$?; ls ~")
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: --out: must be on storage that all nodes of the cluster share, but '/home")
    assert cluster.workers[0].address in line
    assert "code=2" in done.stdout
    assert "apart" not in done.stdout.splitlines()


def test_only_ssh_is_open_to_those_outside(cluster: Cluster) -> None:
    for host in cluster.hosts:
        listening = {port for address, port in host.listeners() if address not in ("127.0.0.1", "::1")}
        assert len(listening) > 3  # Ray is there
        reachable = {port for port in listening if connects(host.address, port)}
        assert reachable == {22}
    listeners = cluster.head.listeners()
    assert {address for address, port in listeners if port == 8265} == {"127.0.0.1"}
    # Not even the other hosts get to Ray Client, whatever it listens on.
    other = cluster.workers[0]
    assert other.run(f"timeout 3 bash -c '</dev/tcp/{cluster.head.address}/10001'", check=False).returncode
    assert other.run(f"timeout 3 bash -c '</dev/tcp/{cluster.head.address}/6379'", check=False).returncode == 0


def connects(address: str, port: int) -> bool:
    try:
        with socket.create_connection((address, port), timeout=0.5):
            return True
    except OSError:
        return False


def test_requests_without_the_token_are_refused(cluster: Cluster) -> None:
    with dashboard_tunnel(cluster) as url:
        for path in ("/api/cluster_status", "/api/jobs/", "/nodes?view=summary", "/logical/actors", "/api/v0/tasks"):
            assert status_of(url + path) == 401, path
            assert status_of(url + path, token="0" * 64) in (401, 403), path
            assert status_of(url + path, token=cluster.token) == 200, path
        job = b'{"entrypoint": "touch /tmp/uninvited"}'
        assert status_of(url + "/api/jobs/", data=job) == 401
    assert "uninvited" not in cluster.head.run("ls /tmp").stdout
    # From within the network: the cluster itself, and Ray Client on the head.
    join = "import ray; ray.init(address={!r}, log_to_driver=False); print(ray.nodes())"
    attempts = {}
    for address in (f"{cluster.head.address}:6379", "ray://127.0.0.1:10001"):
        for environment in ("RAY_AUTH_MODE=disabled", "RAY_AUTH_MODE=token RAY_AUTH_TOKEN=" + "0" * 64):
            script = shlex.quote(join.format(address))
            command = cluster.head.ssh(f"{environment} timeout 60 python -c {script}")
            attempts[address, environment] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )  # side by side: Ray tries for half a minute
    for attempt, process in attempts.items():
        output, _ = process.communicate(timeout=PATIENCE_S)
        assert process.returncode, attempt
        assert "NodeID" not in output, attempt
    # And in words that a user understands.
    done = cluster.head.run("RAY_AUTH_MODE=disabled lsmha-sweep run ~/search_spaces/quickstart.yaml", check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: --address: ")
    assert len(done.stderr.strip().splitlines()) == 1


def test_the_token_is_private_and_in_no_log(cluster: Cluster) -> None:
    for host in cluster.hosts:
        modes = host.run("stat -c %a ~/.ray/auth_token ~/.lsmha").stdout.split()
        assert modes == ["600", "700"]
        assert (
            host.run(
                f"grep -rl {cluster.token} ~/.lsmha ~/.bashrc /tmp ~/ray_bootstrap_config.yaml", check=False
            ).stdout
            == ""
        )
    assert cluster.token not in cluster.spec.read_text()


def test_a_job_is_submitted_through_the_dashboard(cluster: Cluster, lan: Network) -> None:
    command = write_spec(lan, "job", search={**SWEEP["search"], "num_trials": 1})
    with dashboard_tunnel(cluster) as url:
        done = cluster.ray("job", "submit", "--address", url, "--", *command.split())
        assert "succeeded" in done.stdout
    assert rows(lan, "job", "trials")["status"] == ["completed"]


@contextmanager
def dashboard_tunnel(cluster: Cluster) -> Iterator[str]:
    """`ray dashboard`, as a user starts it; gives the URL at this end of its tunnel."""
    (port,) = ports_to_listen_on(1)
    log = cluster.home / "dashboard.log"
    tunnel = cluster.start("dashboard", "--port", str(port), str(cluster.spec), log=log)
    try:
        wait_for(lambda: connects("127.0.0.1", port), "the tunnel")
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(tunnel.pid, signal.SIGTERM)
        tunnel.wait(30)


def status_of(url: str, *, token: str | None = None, data: bytes | None = None) -> int:
    request = urllib.request.Request(url, data=data, headers={"Content-Type": "application/json"})
    if token is not None:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status
    except urllib.error.HTTPError as refused:
        return refused.code


def test_a_lost_worker_costs_no_trial_and_at_most_an_epoch(cluster: Cluster, lan: Network) -> None:
    command = write_spec(lan, "spot", **long_sweep(12))
    (worker,) = cluster.workers
    log = cluster.home / "spot.log"
    driver = cluster.start("exec", str(cluster.spec), command, log=log)
    interrupted = wait_for(lambda: under_way(worker), "trials under way")
    lost = time.strftime("%Y-%m-%d %H:%M:%S")
    worker.lose()
    assert driver.wait(PATIENCE_S) == 0, log.read_text()
    trials = rows(lan, "spot", "trials")
    assert trials["status"] == ["completed"] * 12
    assert len(set(trials["id"])) == 12
    assert "was lost; the run goes on elsewhere" in log.read_text()
    curves = rows(lan, "spot", "curves")
    epochs = list(zip(curves["id"], curves["epoch"], strict=True))
    assert len(epochs) == len(set(epochs)) == 12 * EPOCHS
    for trial, epoch in interrupted.items():
        later = (line for line in logged(cluster.head, rf" {trial}: epoch=") if line >= lost)
        first = next(later)  # before that, other sweeps had trials of the same name there
        assert int(first.split("epoch=")[1].split()[0]) > epoch, first


def under_way(host: Host, *, since_epoch: int = 3) -> dict[str, int]:
    """Trials that a host is training, with the last epoch that they have ended, once one has ended that many."""
    latest: dict[str, int] = {}
    for line in logged(host, r" t\d+: "):
        trial, event = line.split()[2].rstrip(":"), line.split()[3]
        if event == "started":
            latest[trial] = 0
        elif event == "completed":
            del latest[trial]
        else:
            latest[trial] = int(event.removeprefix("epoch="))
    ended = {trial: epoch for trial, epoch in latest.items() if 0 < epoch < EPOCHS / 2}
    return ended if max(ended.values(), default=0) >= since_epoch else {}


def test_a_lost_head_ends_the_driver_in_one_line_and_the_run_goes_on_from_the_bucket(
    cluster: Cluster, lan: Network, bucket: ObjectServer
) -> None:
    renew(cluster)
    (worker,) = cluster.workers
    write_spec(lan, "head", **long_sweep(8))
    run = f"s3://{BUCKET}/runs/head"
    log = cluster.home / "head.log"
    with open(log, "wb") as output:
        # On the worker: a driver on the head is lost with it.
        driver = subprocess.Popen(
            worker.ssh(
                "PYTHONFAULTHANDLER=1 "
                f"lsmha-sweep run /mnt/lsmha/head.yaml --out {run} --address {cluster.head.address}:6379"
            ),
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
    wait_for(lambda: len(records(bucket)) >= 2 and bucket.names("runs/head/checkpoints"), "trials under way")
    cluster.head.lose()

    def said() -> str:
        worker.run("pkill -ABRT lsmha-sweep; sleep 2", check=False)  # which has it say what it was doing
        return log.read_text()

    wait_for(lambda: driver.poll() is not None, "the driver's end", said=said)
    assert driver.poll() == 4, log.read_text()
    *_, line = log.read_text().strip().splitlines()
    assert line.startswith(f"error: the Ray cluster at {cluster.head.address}:6379 is lost: its head does not answer; ")
    assert f"lsmha-sweep resume {run}" in line
    assert "Traceback" not in log.read_text()
    before = records(bucket)
    renew(cluster)
    cluster.ray("exec", str(cluster.spec), f"lsmha-sweep resume {run}")
    after = records(bucket)
    assert before.items() <= after.items()
    assert [json.loads(record)["content"]["status"] for record in after.values()] == ["completed"] * 8
    again = {line.split()[2].rstrip(":") for host in cluster.hosts for line in logged(host, r" t\d+: started")}
    assert not again & {name.split("-")[0] for name in before}


def renew(cluster: Cluster) -> None:
    """The same cluster on hosts of which nothing is left but their addresses."""
    for host in cluster.hosts:
        host.lose()
        host.start()
    cluster.down()  # or `ray up` would take the hosts for set up
    cluster.up()


def records(bucket: ObjectServer) -> dict[str, bytes]:
    """Contents of the records of trials, by name."""
    folder = path_of(f"s3://{BUCKET}/runs/head/records/trials")
    return {name: (folder / name).read_bytes() for name in bucket.names("runs/head/records/trials")}


def test_down_leaves_nothing_running(cluster: Cluster) -> None:
    assert any("raylet" in line for host in cluster.hosts for line in host.processes())
    cluster.down()
    # Ray stops the head; the workers then miss it.
    wait_for(lambda: not any(host.processes() for host in cluster.hosts), "the end of all processes")
    for host in cluster.hosts:
        assert {port for _, port in host.listeners()} == {22}
