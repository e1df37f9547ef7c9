"""How long a network takes to classify an image, on the device at hand."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from lsmha.compute_plan import fastest_inference
from lsmha.config import LatencyConfig, ModelConfig
from lsmha.hardware import device_name
from lsmha.models.attention import AttentionKernels, kernel_name
from lsmha.models.cct import CCT
from lsmha.stopwatch import seconds_of

_WARMUP_ITERATIONS = 3
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class LatencyMeasurement:
    """Latency at one batch size, and all that it depends on; `dataclasses.asdict` makes a flat row of it."""

    batch_size: int
    """Images per forward pass."""
    latency_ms: float
    """Median over the timed passes, in ms per image."""
    latency_p25_ms: float
    """Lower quartile, in ms per image."""
    latency_p75_ms: float
    """Upper quartile, in ms per image."""
    latency_p90_ms: float
    """90th percentile, in ms per image."""
    iterations: int
    """Timed passes."""
    converged: bool
    """Whether the interquartile range fell to the target spread within the time budget."""
    dtype: str
    """Data type of weights and images: fp32 or bf16."""
    device: str
    """Name of the device, such as "NVIDIA H200"."""
    threads: int
    """CPU threads in use while timing."""
    attention: str
    """Attention kernel in effect, such as "materialised" or "sdpa (flash)"; "none" for a plain CNN."""
    torch_version: str
    """Version of torch, build included."""


def measure_latency(
    model_config: ModelConfig, latency: LatencyConfig, *, device: torch.device
) -> list[LatencyMeasurement]:
    """Time the forward pass of a network with random weights, eager and in inference mode.

    After a warm-up, passes are timed one by one until their interquartile range is at most `latency.target_spread` of
    the median or `latency.max_seconds` are over, but at least `latency.min_iterations` of them. Other work on the
    device disturbs the result: leave it alone. The global random state and the CPU threads are left as found.

    Args:
        model_config: The network. Weights have no influence on latency, so no training is needed.
        latency: Protocol; its `device` is the caller's to resolve.
        device: Where to time.

    Returns:
        One measurement per entry of `latency.batch_sizes`, in their order.
    """
    with torch.random.fork_rng(devices=[]):
        model = CCT(model_config).to(device, _DTYPES[latency.dtype]).eval()
    with torch.inference_mode(), _threads(latency.threads, device), _no_garbage_collection():
        return [_measure(model, latency, batch_size, device) for batch_size in latency.batch_sizes]


def _measure(model: CCT, latency: LatencyConfig, batch_size: int, device: torch.device) -> LatencyMeasurement:
    config, dtype = model.config, _DTYPES[latency.dtype]
    kernel = fastest_inference(config, batch_size=batch_size, dtype=dtype, device=device)
    model.use_kernels(AttentionKernels(kernel, kernel))
    query = torch.empty(batch_size, config.num_heads, config.num_tokens, config.head_dim, dtype=dtype, device=device)
    shape = (batch_size, config.in_channels, config.img_size, config.img_size)
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    seconds, converged = _time_until_stable(partial(_timed_pass, model, images), latency)
    p25, median, p75, p90 = (np.percentile(seconds, (25, 50, 75, 90)) * 1e3 / batch_size).tolist()
    return LatencyMeasurement(
        batch_size=batch_size,
        latency_ms=median,
        latency_p25_ms=p25,
        latency_p75_ms=p75,
        latency_p90_ms=p90,
        iterations=len(seconds),
        converged=converged,
        dtype=latency.dtype,
        device=device_name(device),
        threads=torch.get_num_threads(),
        attention=kernel_name(kernel, query) if config.has_attention else "none",
        torch_version=str(torch.__version__),
    )


def _time_until_stable(timed_pass: Callable[[], float], latency: LatencyConfig) -> tuple[list[float], bool]:
    """Seconds of each timed pass, and whether their spread reached the target."""
    warmup_end = time.perf_counter() + latency.warmup_s
    warmups = 0
    while warmups < _WARMUP_ITERATIONS or time.perf_counter() < warmup_end:
        timed_pass()
        warmups += 1
    deadline = time.perf_counter() + latency.max_seconds
    seconds: list[float] = []
    while True:
        seconds.append(timed_pass())
        count = len(seconds)
        time_over = count >= latency.min_iterations and time.perf_counter() >= deadline
        # The spread is looked at now and then only: to sort the times takes longer than a small network's pass.
        if time_over or count % latency.min_iterations == 0:
            p25, median, p75 = np.percentile(seconds, (25, 50, 75))
            converged = bool(p75 - p25 <= latency.target_spread * median)
            if converged or time_over:
                return seconds, converged


def _timed_pass(model: CCT, images: torch.Tensor) -> float:
    """Seconds of one forward pass, its launches on an accelerator included."""
    return seconds_of(partial(model, images), images.device)


@contextmanager
def _threads(threads: int, device: torch.device) -> Iterator[None]:
    """`threads` CPU threads, on the CPU; other devices keep those there are."""
    before = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """No collection in the middle of a timed pass."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
