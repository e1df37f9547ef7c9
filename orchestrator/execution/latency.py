"""Latency of architectures, measured by Ray tasks that have the device to themselves: for the search each once, for the
front in rounds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import ray
import torch

from lsmha.config import LatencyConfig, ModelConfig
from lsmha.errors import LatencyError
from lsmha.latency import Round, measure_in_rounds, measure_latency, measure_round
from orchestrator.cluster.capacity import Capacity
from orchestrator.errors import UserError
from orchestrator.execution.waiting import done_among, result_of
from orchestrator.failures import describe_error
from orchestrator.run_folder.content_hash import architecture_hash, content_hash, latency_relevant
from orchestrator.run_folder.records import LatencyRecord

FEWEST_ROUNDS = 3
"""Of a network on the front that no other one is nearly as fast as; quartiles of fewer processes say little."""


class LatencyCache:
    """Measured latencies by architecture; `measure` fills it, `latency_ms` looks up.

    Nothing in Ray isolates a measurement, so a task claims the whole device: one GPU, or all CPUs of the largest node.
    It runs when they are free; measure when no worker holds them. One front compares latencies of one kind of device:
    nodes with another kind are found out by what they measure, which does not count, and get no further task.

    Args:
        known: By `architecture_hash`, of an earlier session too; whoever is told of new ones adds them here.
        on_measured: Told each new measurement.
    """

    def __init__(
        self,
        config: LatencyConfig,
        capacity: Capacity,
        *,
        use_gpu: bool,
        known: Mapping[str, LatencyRecord],
        on_measured: Callable[[LatencyRecord], None],
    ) -> None:
        self._config = config
        self._use_gpu = use_gpu
        self._claim = {"GPU": 1} if self._use_gpu else {"CPU": capacity.node_cpus}
        self._tasks: dict[Callable[..., Any], Any] = {
            function: ray.remote(function).options(
                num_cpus=self._claim.get("CPU", 0), num_gpus=self._claim.get("GPU", 0), max_retries=3, name="latency"
            )
            for function in (_measure, _measure_round)
        }
        self._may_grow = bool(capacity.addable)
        self._known = known
        self._on_measured = on_measured
        self._errors: dict[str, str] = {}
        self._device = next(iter(known.values())).device if known else config.device_name
        self._others: dict[str, str] = {}
        """Nodes whose device is of another kind, and which."""

    def knows(self, model: ModelConfig) -> bool:
        """Whether an architecture is measured, or is known to be beyond that."""
        name = architecture_hash(model)
        return name in self._known or name in self._errors

    def latency_ms(self, model: ModelConfig) -> float | None:
        """Median per image at the first batch size, in milliseconds; None when it could not be measured."""
        measured = self._known.get(architecture_hash(model))
        return None if measured is None else measured.latency_ms

    def error(self, model: ModelConfig) -> str | None:
        """Why an architecture could not be measured, in one line."""
        return self._errors.get(architecture_hash(model))

    def measure(self, models: Iterable[ModelConfig], *, on_progress: Callable[[int, int], None]) -> None:
        """Measure those not yet known; blocks. `on_progress` gets the number done and the number to do.

        Raises:
            UserError: No node has the device that was asked for, or that earlier sessions of the run measured on.
        """
        wanted = {architecture_hash(model): latency_relevant(model) for model in models if not self.knows(model)}
        pending = {self._start(_measure, model.model_dump_json()): model for model in wanted.values()}
        while pending:
            on_progress(len(wanted) - len(pending), len(wanted))
            for task in done_among(pending):
                model = pending.pop(task)
                if not self._collect(model, task):
                    pending[self._start(_measure, model.model_dump_json())] = model
        if wanted:
            on_progress(len(wanted), len(wanted))

    def measure_in_rounds(
        self,
        models: Iterable[ModelConfig],
        *,
        on_measured: Callable[[LatencyRecord], None],
        on_progress: Callable[[int, int], None],
    ) -> dict[str, str]:
        """Measure networks beside one another (`lsmha.latency.rounds`); blocks. `on_measured` is told when all rounds
        are made; `on_progress` gets the rounds made and to be made.

        Returns:
            Why some could not be measured, in one line each, by `architecture_hash`.

        Raises:
            UserError: As `measure` does.
        """
        wanted = {architecture_hash(model): latency_relevant(model) for model in models}
        rounds = self._config.rounds
        made = 0

        def make_round(models: Sequence[ModelConfig]) -> Round:
            nonlocal made
            on_progress(made, max(rounds, made + 1))
            found = self._round(models)
            made += 1
            return found

        try:
            measured = measure_in_rounds(make_round, list(wanted.values()), rounds, fewest=FEWEST_ROUNDS)
        except LatencyError as error:
            return dict.fromkeys(wanted, str(error))
        on_progress(made, made)
        errors = {}
        for (name, model), rows in zip(wanted.items(), measured, strict=True):
            if isinstance(rows, str):
                errors[name] = rows
            else:
                on_measured(self._record(name, model, [asdict(row) for row in rows], in_rounds=True))
        return errors

    def _round(self, models: Sequence[ModelConfig]) -> Round:
        """A round on a device of the right kind."""
        while True:
            task = self._start(_measure_round, [model.model_dump_json() for model in models])
            try:
                node, found = result_of(task)
            except ray.exceptions.RayError as error:
                raise LatencyError(describe_error(error)) from None
            devices = [rows[0].device for rows in found.measured if not isinstance(rows, str)]
            if not devices or self._is_right(devices[0], node):
                return found

    def _start(self, function: Callable[..., Any], *arguments: Any) -> ray.ObjectRef:
        self._check_devices()
        elsewhere = {"ray.io/node-id": f"!in({','.join(self._others)})"} if self._others else None
        task = self._tasks[function].options(label_selector=elsewhere) if elsewhere else self._tasks[function]
        return task.remote(*arguments, self._config.model_dump_json(), self._use_gpu)

    def _is_right(self, device: str, node: str) -> bool:
        """Whether a device is of the kind that this run measures on, the first one being so."""
        self._device = self._device or device
        if device != self._device:
            self._others[node] = device
        return device == self._device

    def _record(
        self, name: str, model: ModelConfig, rows: list[dict[str, Any]], *, in_rounds: bool = False
    ) -> LatencyRecord:
        # When it is measured does not matter to what is.
        how = self._config.model_dump(mode="json", exclude={"measure_first"})
        work = {"architecture": name, "latency": how, "device": rows[0]["device"]}
        columns = {"architecture": name, **_columns(model)}
        return LatencyRecord(name, content_hash(work), [{**columns, **row} for row in rows], in_rounds)

    def _check_devices(self) -> None:
        """Raise UserError where a task would wait for ever for the right kind of device."""
        if self._may_grow or not self._others:
            return
        for node in ray.nodes():
            fits = all(node["Resources"].get(kind, 0) >= amount for kind, amount in self._claim.items())
            if node["Alive"] and fits and node["NodeID"] not in self._others:
                return
        asked = f"latency.device_name: must be that of a node, but got {self._device!r} where there is"
        before = f"latency: must be measured on {self._device!r}, as before in this run, but there is"
        found = " and ".join(sorted({repr(device) for device in self._others.values()}))
        raise UserError(f"{asked if self._device == self._config.device_name else before} {found}")

    def _collect(self, model: ModelConfig, task: ray.ObjectRef) -> bool:
        """Take what a task has measured; returns whether that settles the architecture."""
        name = architecture_hash(model)
        try:
            node, rows = ray.get(task)
        except ray.exceptions.RayError as error:
            self._errors[name] = f"latency: {describe_error(error)}"
            return True
        if not self._is_right(rows[0]["device"], node):
            return False
        self._on_measured(self._record(name, model, rows))
        return True


def _columns(model: ModelConfig) -> dict[str, Any]:
    names = ("embed_dim", "depth", "num_heads", "num_conv_blocks", "conv_kind", "mlp_ratio", "img_size", "num_classes")
    return {name: getattr(model, name) for name in names}


def _measure(model: str, latency: str, use_gpu: bool) -> tuple[str, list[dict[str, Any]]]:
    """The node that this runs on, and what it measures."""
    rows = measure_latency(
        ModelConfig.model_validate_json(model),
        LatencyConfig.model_validate_json(latency).of_search(),
        device=_device(use_gpu),
    )
    return ray.get_runtime_context().get_node_id(), [asdict(row) for row in rows]


def _measure_round(models: list[str], latency: str, use_gpu: bool) -> tuple[str, Round]:
    """The node that this runs on, and what it measures."""
    found = measure_round(
        [ModelConfig.model_validate_json(model) for model in models],
        LatencyConfig.model_validate_json(latency),
        device=_device(use_gpu),
    )
    return ray.get_runtime_context().get_node_id(), found


def _device(use_gpu: bool) -> torch.device:
    return torch.device("cuda" if use_gpu else "cpu")
