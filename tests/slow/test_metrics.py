"""A sweep watched by a real Prometheus, as monitoring/ has it: every query of the board, and what the numbers say."""

from __future__ import annotations

import json
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import pytest
from background import running, wait_for
from repository import ROOT
from ruamel.yaml import YAML
from running_sweep import records, write_spec

from orchestrator.cluster.ports import ports_to_listen_on

MONITORING = ROOT / "monitoring"
BOARD = json.loads((MONITORING / "grafana-board.json").read_text(encoding="utf-8"))
QUERIES = [target["expr"] for panel in BOARD["panels"] for target in panel["targets"]]
SWEEP = {
    "name": "watched",
    "data": {"name": "digits"},
    "train": {"epochs": 24, "batch_size": 40, "precision": "fp32"},
    "space": {"num_heads": [1, 4], "depth": [1, 2]},
    "search": {"sampler": "grid", "num_trials": 4, "suggestion_batch": 4},
    "finalists": {"max_finalists": 2, "seeds": [0]},
    "analysis": {"enabled": False},
    "committees": {"enabled": False},
}
"""One batch of four trials, then finalists, each of some seconds: longer than what lies between two reports."""

Cli = Callable[..., "subprocess.CompletedProcess[str]"]


class Prometheus:
    """What a server has collected since the test began."""

    def __init__(self, address: str) -> None:
        self._address, self._began = address, time.time()

    def healthy(self) -> bool:
        """Whether it scrapes each of the cluster's three sources: the node, the autoscaler and the dashboard."""
        targets = self.get("targets")["activeTargets"]
        return [target["health"] for target in targets] == ["up"] * 3

    def over_time(self, query: str) -> list[tuple[dict[str, str], list[float]]]:
        """Labels and values of each series, in steps of a second."""
        query = query.replace("$sweep", ".*")  # what the board means by "All"
        found = self.get("query_range", query=query, start=self._began, end=time.time(), step=1)["result"]
        return [(series["metric"], [float(value) for _, value in series["values"]]) for series in found]

    def last(self, query: str, *labels: str) -> dict[tuple[str, ...], float]:
        """The last value of each series, by these labels."""
        return {tuple(series[label] for label in labels): values[-1] for series, values in self.over_time(query)}

    def get(self, what: str, **arguments: Any) -> Any:
        with urlopen(f"http://{self._address}/api/v1/{what}?{urlencode(arguments)}", timeout=30) as answer:
            return json.load(answer)["data"]


class Watched(NamedTuple):
    """A sweep that has ended, and what watched it."""

    run: Path
    prometheus: Prometheus
    dashboard: str
    token: str


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory, alone: Cli) -> Iterator[Watched]:
    """A cluster of 2 CPUs with a token, a Prometheus that scrapes it, and a sweep from start to end."""
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is not installed (Debian and Ubuntu: apt-get install prometheus)")
    folder = tmp_path_factory.mktemp("metrics")
    gcs, dashboard, agent, client, autoscaler_metrics, dashboard_metrics, web = ports_to_listen_on(7)
    (folder / "token").write_text(token := secrets.token_hex(32))
    env = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "RAY_metrics_report_interval_ms": "2000",
        # Ports that `ray start` has no options for; other clusters of this machine may have the usual ones.
        "AUTOSCALER_METRIC_PORT": str(autoscaler_metrics),
        "DASHBOARD_METRIC_PORT": str(dashboard_metrics),
    }
    with ExitStack() as stack:
        # Short: Ray's socket paths in it are limited to 107 bytes.
        temporary = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="r", ignore_cleanup_errors=True)))
        head = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=2",
                "--node-ip-address=127.0.0.1", f"--port={gcs}", f"--temp-dir={temporary}",
                f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}",
                f"--ray-client-server-port={client}", "--disable-usage-stats"]  # fmt: skip
        server = ["prometheus", f"--config.file={_settings(folder, temporary)}",
                  f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address=127.0.0.1:{web}"]  # fmt: skip
        for name, command in (("head", head), ("server", server)):
            stack.enter_context(running(command, folder / f"{name}.log", env=env))
        prometheus = Prometheus(f"127.0.0.1:{web}")
        _wait_for(prometheus.healthy, "the scrape of each source", folder)
        spec, run = write_spec(folder / "space.yaml", **SWEEP), folder / "run"
        done = alone("run", spec, "--out", run, "--address", f"127.0.0.1:{gcs}", env=env)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "metrics are not shown" not in done.stdout
        finalists = len(records(run, "finalists"))

        def all_finalists() -> bool:
            return _counts(prometheus, "finalists")["completed"] == finalists

        def nothing_shown() -> bool:
            return prometheus.get("query", query='{__name__=~"ray_lsmha_.*"}')["result"] == []

        _wait_for(all_finalists, "the count of finalists", folder)
        # The driver is gone, and with it all that it showed.
        _wait_for(nothing_shown, "the end of what the driver showed", folder)
        yield Watched(run, prometheus, f"http://127.0.0.1:{dashboard}", token)


@pytest.mark.parametrize("query", QUERIES)
def test_each_query_of_the_board_has_data(watched: Watched, query: str) -> None:
    series = watched.prometheus.over_time(query)
    assert series
    assert all(values for _, values in series)


def test_the_board_lists_the_sweep(watched: Watched) -> None:
    (variable,) = (variable for variable in BOARD["templating"]["list"] if variable["name"] == "sweep")
    assert variable["definition"] == "label_values(ray_lsmha_trials, sweep)"
    assert watched.prometheus.get("label/sweep/values", **{"match[]": "ray_lsmha_trials"}) == ["watched"]


def test_numbers_are_those_of_the_records(watched: Watched) -> None:
    trials = [record.content for record in records(watched.run, "trials").values()]
    assert len(trials) == 4
    prometheus = watched.prometheus
    assert _counts(prometheus, "trials") == {"running": 0, "completed": 4, "stopped": 0, "paused": 0, "failed": 0}
    finalists = len(records(watched.run, "finalists"))
    assert _counts(prometheus, "finalists") == {
        "running": 0,
        "completed": finalists,
        "stopped": 0,
        "paused": 0,
        "failed": 0,
    }
    best = max(trial["val_accuracy"] for trial in trials)
    assert prometheus.last("ray_lsmha_best_objective", "sweep", "metric") == {("watched", "val_accuracy"): best}

    # One batch, so the reference is of all trials.
    accuracy = min(trial["val_accuracy"] for trial in trials) / 2
    params = max(trial["params"] for trial in trials) * 2
    assert prometheus.last("ray_lsmha_hypervolume_reference", "metric") == {
        ("val_accuracy",): accuracy,
        ("params",): params,
    }
    steps = 0.0
    for trial in sorted(trials, key=lambda trial: trial["params"]):
        if trial["val_accuracy"] > accuracy:
            steps += (trial["val_accuracy"] - accuracy) * (params - trial["params"])
            accuracy = trial["val_accuracy"]
    assert prometheus.last("ray_lsmha_hypervolume", "sweep") == {("watched",): pytest.approx(steps)}


def test_rates_are_those_of_epochs_and_end_with_the_run(watched: Watched) -> None:
    ended = records(watched.run, "trials") | records(watched.run, "finalists")
    shown = watched.prometheus.over_time("ray_lsmha_trial_images_per_s")
    assert shown
    for labels, values in shown:
        told = {epoch["images_per_s"] for epoch in ended[labels["trial"]].content["curve"]}
        assert set(values) <= told | {0.0}
        assert values[-1] == 0.0
    memory = watched.prometheus.over_time("ray_lsmha_trial_gpu_memory_gib")
    assert {labels["trial"] for labels, _ in memory} == {labels["trial"] for labels, _ in shown}
    assert all(set(values) == {0.0} for _, values in memory), "no GPU, no memory"
    ((_, total),) = watched.prometheus.over_time("ray_lsmha_images_per_s")
    assert max(total) > 0
    assert total[-1] == 0


def test_the_log_of_a_workers_actor_has_its_trials(watched: Watched) -> None:
    filters = {"filter_keys": "class_name", "filter_predicates": "=", "filter_values": "TrainingTrial"}
    workers = json.loads(_asked(watched, "actors", **filters))["data"]["result"]["result"]
    logs = [_asked(watched, "logs/file", actor_id=worker["actor_id"], suffix="out", lines=-1) for worker in workers]
    ended = records(watched.run, "trials") | records(watched.run, "finalists")
    for name in ended:
        (log,) = (log for log in logs if f" {name}: started" in log)
        lines = [line.partition(f" {name}: ")[2] for line in log.splitlines() if f" {name}: " in line]
        told = [line.split()[0] for line in lines]
        assert [word for word in told if word != "disturbed"] == [  # other tests may be at work, too
            "started",
            *(f"epoch={epoch}" for epoch in range(1, 25)),
            "completed",
        ]
    with pytest.raises(HTTPError, match="403"):
        _asked(watched._replace(token="guessed" * 8), "actors")


def _counts(prometheus: Prometheus, stage: str) -> dict[str, float]:
    """Training runs of a stage by state; none of a state that was not shown yet."""
    shown = prometheus.last(f'ray_lsmha_trials{{stage="{stage}"}}', "state")
    return {state: shown.get((state,), -1) for state in ("running", "completed", "stopped", "paused", "failed")}


def _asked(watched: Watched, what: str, **arguments: Any) -> str:
    """What the dashboard answers whoever has the token."""
    request = Request(
        f"{watched.dashboard}/api/v0/{what}?{urlencode(arguments)}",
        headers={"Authorization": f"Bearer {watched.token}"},
    )
    with urlopen(request, timeout=30) as answer:
        return answer.read().decode()


def _settings(folder: Path, temporary: Path) -> Path:
    """monitoring/prometheus.yml for a cluster in another folder, and in shorter steps."""
    yaml = YAML()
    settings = yaml.load(MONITORING / "prometheus.yml")
    settings["global"] |= {"scrape_interval": "1s", "scrape_timeout": "1s"}
    (discovery,) = settings["scrape_configs"][0]["file_sd_configs"]
    (file,) = (Path(file) for file in discovery["files"])
    assert file.parent == Path("/tmp/ray"), "where Ray has it by default"
    discovery |= {"files": [str(temporary / file.name)], "refresh_interval": "1s"}
    yaml.dump(settings, folder / "prometheus.yml")
    return folder / "prometheus.yml"


def _wait_for(condition: Callable[[], bool], what: str, logs: Path) -> None:
    def met() -> bool:
        with suppress(URLError):  # not there yet
            return condition()
        return False

    def said() -> str:
        return "\n".join(f"== {log}\n{log.read_text()}" for log in logs.glob("*.log"))

    wait_for(met, what, said=said, every_s=0.5)
