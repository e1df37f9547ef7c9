"""How long a network takes to classify an image, on the device at hand, in this process."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from lsmha.config import LatencyConfig, ModelConfig
from lsmha.devices.compute_plan import fastest_inference
from lsmha.devices.hardware import device_name
from lsmha.devices.stopwatch import seconds_of
from lsmha.errors import ConfigurationError
from lsmha.latency.background_load import BackgroundLoad
from lsmha.models.attention import AttentionKernels, kernel_name
from lsmha.models.cct import CCT

BLOCK_S = 0.5
"""Passes count, or do not, in blocks of this length: long enough to see what else the machine does meanwhile."""
MAX_BACKGROUND_LOAD = 0.05
"""Share of the machine's CPU time that others may take in a block that counts."""

_WARMUP_ITERATIONS = 3
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class LatencyMeasurement:
    """Latency at one batch size, and all that it depends on; `dataclasses.asdict` makes a flat row of it."""

    batch_size: int
    """Images per forward pass."""
    latency_ms: float
    """Median over the timed passes, in ms per image; of several processes the median of their medians."""
    latency_p25_ms: float
    """Lower quartile, in ms per image; of several processes that of their medians."""
    latency_p75_ms: float
    """Upper quartile, likewise."""
    latency_p90_ms: float
    """90th percentile over the timed passes, in ms per image; of several processes the median of theirs."""
    iterations: int
    """Timed passes, in all."""
    processes: int
    """Fresh processes that this is of; 1 for one process, fresh or not."""
    converged: bool
    """Whether the interquartile range of the passes fell to the target spread within the time budget (of each
    process)."""
    undisturbed: bool
    """Whether other work took at most 5 % of the machine's CPUs while the passes were timed; if not, there was too
    little time like that."""
    mode: str
    """How torch ran it: eager, compiled or cuda-graph."""
    dtype: str
    """Data type of weights and images: fp32 or bf16."""
    device: str
    """Name of the device, such as "NVIDIA H200"."""
    threads: int
    """CPU threads in use while timing."""
    attention: str
    """Attention kernel in effect, such as "materialized" or "sdpa (flash)"; "none" for a plain CNN."""
    torch_version: str
    """Version of torch, build included."""
    reference_ms: float | None = None
    """Latency of `rounds.REFERENCE_NETWORK` in the same rounds, in ms per image: how fast the machine was; None where
    there were no rounds."""


def measure_latency(
    model_config: ModelConfig, latency: LatencyConfig, *, device: torch.device
) -> list[LatencyMeasurement]:
    """Time the forward pass of a network with random weights, in inference mode.

    After a warm-up, passes are timed one by one, in blocks of half a second, until their interquartile range is at most
    `latency.target_spread` of the median or `latency.max_seconds` are over, but at least `latency.min_iterations` of
    them. Blocks in which others kept the machine's CPUs busy do not count, unless there are no others. The global
    random state and the CPU threads are left as found.

    Args:
        model_config: The network. Weights have no influence on latency, so no training is needed.
        latency: Protocol; its `device` is the caller's to resolve.
        device: Where to time.

    Returns:
        One measurement per entry of `latency.batch_sizes`, in their order.

    Raises:
        ValueError: `latency.mode` is cuda-graph, and `device` no GPU.
    """
    if latency.mode == "cuda-graph" and device.type != "cuda":
        raise ConfigurationError(f"latency.mode: must be eager or compiled without a GPU, but got {latency.mode!r}")
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
    run = _runner(model, latency, images)
    seconds, converged, undisturbed = _time_until_stable(partial(_timed_pass, run, images), latency)
    p25, median, p75, p90 = (np.percentile(seconds, (25, 50, 75, 90)) * 1e3 / batch_size).tolist()
    return LatencyMeasurement(
        batch_size=batch_size,
        latency_ms=median,
        latency_p25_ms=p25,
        latency_p75_ms=p75,
        latency_p90_ms=p90,
        iterations=len(seconds),
        processes=1,
        converged=converged,
        undisturbed=undisturbed,
        mode=latency.mode,
        dtype=latency.dtype,
        device=device_name(device),
        threads=torch.get_num_threads(),
        attention=kernel_name(kernel, query) if config.has_attention else "none",
        torch_version=str(torch.__version__),
    )


def _runner(model: CCT, latency: LatencyConfig, images: torch.Tensor) -> Callable[[torch.Tensor], Any]:
    """What makes a forward pass: the network, compiled if asked for, or the replay of what it did on the GPU once."""
    if latency.mode == "eager":
        return model
    if latency.mode == "compiled":
        # A sweep changes shapes from one network to the next: nothing that was compiled before is of use.
        torch.compiler.reset()
        return torch.compile(model, dynamic=False)
    # As torch asks for it: a capture needs what is allocated lazily to be there, from passes on another stream.
    stream = torch.cuda.Stream(images.device)
    stream.wait_stream(torch.cuda.current_stream(images.device))
    with torch.cuda.stream(stream):
        for _ in range(_WARMUP_ITERATIONS):
            model(images)
    torch.cuda.current_stream(images.device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        model(images)
    return lambda _: graph.replay()


def _time_until_stable(timed_pass: Callable[[], float], latency: LatencyConfig) -> tuple[list[float], bool, bool]:
    """Seconds of each timed pass that counts, whether their spread reached the target, and whether nothing disturbed
    them."""
    warmup_end = time.perf_counter() + latency.warmup_s
    warmups = 0
    while warmups < _WARMUP_ITERATIONS or time.perf_counter() < warmup_end:
        timed_pass()
        warmups += 1
    deadline = time.perf_counter() + latency.max_seconds
    counting: list[float] = []
    disturbed: list[float] = []
    load = BackgroundLoad()
    while True:
        block = _block(timed_pass, latency.min_iterations, deadline)
        (counting if (load.read() or 0) <= MAX_BACKGROUND_LOAD else disturbed).extend(block)
        time_over = time.perf_counter() >= deadline
        if len(counting) >= latency.min_iterations:
            converged = _has_converged(counting, latency.target_spread)
            if converged or time_over:
                return counting, converged, True
        elif time_over:
            every = counting + disturbed
            return every, _has_converged(every, latency.target_spread), False


def _block(timed_pass: Callable[[], float], min_passes: int, deadline: float) -> list[float]:
    end = min(time.perf_counter() + BLOCK_S, deadline)
    seconds: list[float] = []
    while len(seconds) < min_passes or time.perf_counter() < end:
        seconds.append(timed_pass())
    return seconds


def _has_converged(seconds: list[float], target_spread: float) -> bool:
    p25, median, p75 = np.percentile(seconds, (25, 50, 75))
    return bool(p75 - p25 <= target_spread * median)


def _timed_pass(run: Callable[[torch.Tensor], Any], images: torch.Tensor) -> float:
    """Seconds of one forward pass, its launches on an accelerator included."""
    return seconds_of(partial(run, images), images.device)


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
