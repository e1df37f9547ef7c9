"""Latency of architectures, each measured once per device by a Ray task that has the device to itself."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

import ray
import torch

from lsmha.config import LatencyConfig, ModelConfig
from lsmha.latency import measure_latency
from orchestrator.cluster import Capacity
from orchestrator.errors import describe_error


class LatencyCache:
    """Measured latencies by architecture; `measure` fills it, `latency_ms` looks up.

    Nothing in Ray isolates a measurement, so a task claims the whole device: one GPU, or all CPUs of the largest node.
    It runs when they are free; measure when no trial is running, nor one of Tune's idle actors holds them. One front
    compares latencies of one kind of device: what another kind measured counts as failed.
    """

    def __init__(
        self,
        config: LatencyConfig,
        capacity: Capacity,
        *,
        use_gpu: bool,
        on_measured: Callable[[str, list[dict[str, Any]]], None],
    ) -> None:
        self._config = config
        self._use_gpu = use_gpu if config.device == "auto" else config.device == "cuda"
        whole_device = {"num_gpus": 1, "num_cpus": 0} if self._use_gpu else {"num_cpus": capacity.node_cpus}
        self._task = ray.remote(_measure).options(max_retries=1, name="latency", **whole_device)
        self._on_measured = on_measured
        self._latency_ms: dict[ModelConfig, float] = {}
        self._errors: dict[ModelConfig, str] = {}
        self._device: str | None = None

    def knows(self, model: ModelConfig) -> bool:
        """Whether an attempt to measure this architecture has been made."""
        return _architecture(model) in self._latency_ms or _architecture(model) in self._errors

    def latency_ms(self, model: ModelConfig) -> float | None:
        """Median per image at the first batch size, in milliseconds; None when it could not be measured."""
        return self._latency_ms.get(_architecture(model))

    def error(self, model: ModelConfig) -> str | None:
        """Why an architecture could not be measured, in one line."""
        return self._errors.get(_architecture(model))

    def measure(self, models: Iterable[ModelConfig], *, on_progress: Callable[[int, int], None]) -> None:
        """Measure those not yet known; blocks. `on_progress` gets the number done and the number to do."""
        wanted = dict.fromkeys(_architecture(model) for model in models if not self.knows(model))
        pending = {
            self._task.remote(model.model_dump_json(), self._config.model_dump_json(), self._use_gpu): model
            for model in wanted
        }
        while pending:
            on_progress(len(wanted) - len(pending), len(wanted))
            (done,), _ = ray.wait(list(pending), num_returns=1)
            self._collect(pending.pop(done), done)
        if wanted:
            on_progress(len(wanted), len(wanted))

    def _collect(self, model: ModelConfig, task: ray.ObjectRef) -> None:
        try:
            rows = ray.get(task)
        except ray.exceptions.RayError as error:
            self._errors[model] = f"latency: {describe_error(error)}"
            return
        device = rows[0]["device"]
        self._device = self._device or device
        if device != self._device:
            self._errors[model] = f"latency: measured on {device}, but the others of this sweep on {self._device}"
            return
        self._latency_ms[model] = rows[0]["latency_ms"]
        key = architecture_key(model)
        self._on_measured(key, [{"architecture": key, **_columns(model), **row} for row in rows])


def architecture_key(model: ModelConfig) -> str:
    """Short stable name of a network: equal for equal networks."""
    return hashlib.sha256(_architecture(model).model_dump_json().encode()).hexdigest()[:12]


def _architecture(model: ModelConfig) -> ModelConfig:
    """What latency depends on: dropout does nothing at inference."""
    return model.canonical().model_copy(update={"drop_path": 0.0, "attn_drop": 0.0})


def _columns(model: ModelConfig) -> dict[str, Any]:
    names = ("embed_dim", "depth", "num_heads", "num_conv_blocks", "conv_kind", "mlp_ratio", "img_size", "num_classes")
    return {name: getattr(model, name) for name in names}


def _measure(model: str, latency: str, use_gpu: bool) -> list[dict[str, Any]]:
    rows = measure_latency(
        ModelConfig.model_validate_json(model),
        LatencyConfig.model_validate_json(latency),
        device=torch.device("cuda" if use_gpu else "cpu"),
    )
    return [asdict(row) for row in rows]
