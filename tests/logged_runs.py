"""What loggers have kept of runs, read back by other means than those that wrote it."""

from __future__ import annotations

import json
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any, NamedTuple


class LoggedRun(NamedTuple):
    """A run as a logger has it."""

    metrics: dict[str, list[tuple[int, float]]]
    """By name: steps and values, as they came."""
    params: dict[str, Any]
    images: list[str]
    status: str = ""
    error: str = ""


def tensorboard_runs(folder: Path) -> dict[str, LoggedRun]:
    """By run, what TensorBoard shows of the event files below `folder`."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # its import takes a second
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    found = {}
    for run in sorted(folder.iterdir()):
        events = EventAccumulator(str(run), {"scalars": 0})
        events.Reload()
        params: dict[str, Any] = {}
        tags = events.Tags()
        if "_hparams_/session_start_info" in events.summary_metadata:
            content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
            for name, value in HParamsPluginData.FromString(content).session_start_info.hparams.items():
                params[name] = getattr(value, value.WhichOneof("kind"))
        metrics = {
            tag.removeprefix("ray/tune/"): [(event.step, event.value) for event in events.Scalars(tag)]
            for tag in tags["scalars"]
        }
        found[run.name] = LoggedRun(metrics, params, tags["images"])
    return found


def mlflow_runs(database: Path, experiment: str) -> dict[str, LoggedRun]:
    """By run, what MLflow has in a database; each name must be there once."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The ``noload`` loader strategy is deprecated")  # MLflow 3.17, SQLAlchemy 2.1
        from mlflow.tracking import MlflowClient  # its import takes seconds

        client = MlflowClient(f"sqlite:///{database}")
    known = client.get_experiment_by_name(experiment)
    assert known is not None
    found: dict[str, LoggedRun] = {}
    for run in client.search_runs([known.experiment_id]):
        assert run.info.run_name not in found, "logged twice"
        found[run.info.run_name] = LoggedRun(
            {
                name: [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, name)]
                for name in run.data.metrics
            },
            run.data.params,
            [file.path for file in client.list_artifacts(run.info.run_id)],
            run.info.status,
            run.data.tags.get("error", ""),
        )
    return found


def comet_sessions(folder: Path) -> dict[str, list[LoggedRun]]:
    """By run, what each offline session of Comet has written of it, in their order; a run must have one key."""
    found: dict[str, list[tuple[int, LoggedRun]]] = {}
    keys: dict[str, str] = {}
    for archive in folder.glob("*.zip"):
        with zipfile.ZipFile(archive) as opened:
            about = json.loads(opened.read("experiment.json"))
            messages = [json.loads(line)["payload"] for line in opened.read("messages.json").splitlines()]
        run, name = LoggedRun({}, {}, []), ""
        for message in messages:
            match message:
                case {"key": "Name", "value": name}:
                    assert keys.setdefault(name, about["offline_id"]) == about["offline_id"]
                case {"metric": {"metricName": metric, "metricValue": value, "step": step}}:
                    run.metrics.setdefault(metric, []).append((step, value))
                case {"param": {"paramName": parameter, "paramValue": value}}:
                    run.params[parameter] = value
                case {"additional_params": {"figName": image}}:
                    run.images.append(image)
        found.setdefault(name, []).append((about["start_time"], run))
    return {name: [run for _, run in sorted(runs, key=lambda item: item[0])] for name, runs in found.items()}


def wandb_sessions(folder: Path) -> dict[str, list[LoggedRun]]:
    """By run id, what each offline session of W&B has written of the run, in their order."""
    from wandb.proto.wandb_internal_pb2 import Record  # its import takes a second

    found: dict[str, list[LoggedRun]] = {}
    for file in sorted(folder.glob("offline-run-*/run-*.wandb")):
        run, run_id = LoggedRun({}, {}, []), ""
        for content in _records_of_a_log(file.read_bytes()):
            record = Record.FromString(content)
            for update in [*record.run.config.update, *record.config.update]:
                run.params[update.key] = json.loads(update.value_json)
            run_id = record.run.run_id or run_id
            for item in record.history.item:
                name, value = "/".join(item.nested_key) or item.key, json.loads(item.value_json)
                if name.endswith("/_type") and value == "image-file":
                    run.images.append(name.removesuffix("/_type"))
                run.metrics.setdefault(name, []).append((record.history.step.num, value))
        if run_id:  # a killed session may have made the file alone
            found.setdefault(run_id, []).append(run)
    return found


def _records_of_a_log(content: bytes) -> list[bytes]:
    """The records in a file of LevelDB's log format, whose blocks begin behind a header of seven bytes."""
    records, parts, at = [], b"", 7
    while at + 7 <= len(content):
        left = 32768 - at % 32768
        _, length, kind = struct.unpack("<IHB", content[at : at + 7]) if left >= 7 else (0, 0, 0)
        if kind == 0:  # the rest of the block is empty
            at += left
            continue
        part, at = content[at + 7 : at + 7 + length], at + 7 + length
        parts = part if kind in (1, 2) else parts + part
        if kind in (1, 4):
            records.append(parts)
    return records
