"""Latency of architectures, each measured once per device by a Ray task that has the device to itself."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

import ray
import torch

from lsmha.config import LatencyConfig, ModelConfig
from lsmha.latency import measure_latency
from orchestrator.cluster import Capacity


class LatencyCache:
    """Measured latencies by architecture; `start` and `poll` fill it, `latency_ms` looks up.

    Nothing in Ray isolates a measurement, so a task claims the whole device: one GPU, or the CPUs of the largest node
    (one task at a time). It runs when they are free; start it when no trial is running.
    """

    def __init__(
        self,
        config: LatencyConfig,
        capacity: Capacity,
        *,
        use_gpu: bool,
        idle_cpus: int = 0,
        on_measured: Callable[[str, list[dict[str, Any]]], None],
    ) -> None:
        self._config = config
        self._use_gpu = use_gpu if config.device == "auto" else config.device == "cuda"
        if self._use_gpu:
            whole_device = {"num_gpus": 1, "num_cpus": 0}
            self._at_a_time = max(1, int(capacity.gpus))
        else:
            # An idle actor that Tune keeps for the next trial holds `idle_cpus`, and computes nothing.
            whole_device = {"num_cpus": max(0, capacity.node_cpus - idle_cpus)}
            self._at_a_time = 1
        self._task = ray.remote(_measure).options(max_retries=1, name="latency", **whole_device)
        self._on_measured = on_measured
        self._waiting: deque[ModelConfig] = deque()
        self._pending: dict[ray.ObjectRef, ModelConfig] = {}
        self._latency_ms: dict[ModelConfig, float] = {}
        self._errors: dict[ModelConfig, str] = {}

    def knows(self, model: ModelConfig) -> bool:
        """Whether an attempt to measure this architecture has been made."""
        return _architecture(model) in self._latency_ms or _architecture(model) in self._errors

    def latency_ms(self, model: ModelConfig) -> float | None:
        """Median per image at the first batch size, in milliseconds; None when it could not be measured."""
        return self._latency_ms.get(_architecture(model))

    def error(self, model: ModelConfig) -> str | None:
        """Why an architecture could not be measured, in one line."""
        return self._errors.get(_architecture(model))

    def start(self, models: Iterable[ModelConfig]) -> int:
        """Queue those not yet known, without waiting for them. Returns how many."""
        wanted = dict.fromkeys(_architecture(model) for model in models if not self.knows(model))
        self._waiting += wanted
        return len(wanted)

    def poll(self) -> int:
        """Collect what has been measured, submit what waits, and return how many are still to come."""
        done, _ = (
            ray.wait(list(self._pending), num_returns=len(self._pending), timeout=0) if self._pending else ([], [])
        )
        for task in done:
            self._collect(self._pending.pop(task), task)
        while self._waiting and len(self._pending) < self._at_a_time:
            model = self._waiting.popleft()
            task = self._task.remote(model.model_dump_json(), self._config.model_dump_json(), self._use_gpu)
            self._pending[task] = model
        return len(self._waiting) + len(self._pending)

    def _collect(self, model: ModelConfig, task: ray.ObjectRef) -> None:
        try:
            rows = ray.get(task)
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None) or error
            self._errors[model] = f"latency: {type(cause).__name__}: {str(cause).strip().splitlines()[-1]}"
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
