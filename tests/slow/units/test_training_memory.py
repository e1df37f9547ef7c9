"""Memory of a training step: what is predicted beside what torch's profiler sees, and what follows from it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_data import tiny_dataset, tiny_model, tiny_recipe
from torch.nn import functional as F

from lsmha import device_memory
from lsmha.config import ModelConfig
from lsmha.device_memory import free_memory
from lsmha.devices.compute_plan import ComputePlan
from lsmha.errors import MemoryShortageError
from lsmha.models import CCT
from lsmha.models.attention import AttentionKernels
from lsmha.training import TrainState, memory
from lsmha.training.memory import fitting_plan, inference_memory, training_memory
from lsmha.training.optimization import build_optimizer
from orchestrator.execution import training
from orchestrator.execution.training import train_jobs
from orchestrator.execution.training_job import Failed, TrainingJob

CPU = torch.device("cpu")
MODEL = ModelConfig(img_size=32, num_classes=10, embed_dim=32, depth=2, num_heads=8, attn_drop=0.0, drop_path=0.0)
MATERIALIZED = ComputePlan("fp32", AttentionKernels("materialized", "sdpa"))


def _seen_by_the_profiler(model: ModelConfig, kernel: Any, bf16: bool, images: int, trace: Path) -> int:
    """Peak of the bytes that torch's allocator handed out in a real step, weights included."""

    def step() -> None:
        network = CCT(model).train()
        network.use_kernels(AttentionKernels(kernel, kernel))
        optimizer = build_optimizer(network.named_parameters(), tiny_recipe())
        inputs, labels = torch.rand(images, 3, model.img_size, model.img_size), torch.zeros(images, dtype=torch.long)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            logits = network(inputs)
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()

    return _peak_of_profile(step, trace)


def _peak_of_profile(work: Callable[[], object], trace: Path) -> int:
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        work()
    profile.export_chrome_trace(str(trace))
    events = [event["args"] for event in json.loads(trace.read_text())["traceEvents"] if event["name"] == "[memory]"]
    now = peak = 0
    for event in events:
        now += event["Bytes"]
        peak = max(peak, now)
    return peak


@pytest.mark.parametrize(
    ("kernel", "bf16", "num_conv_blocks"),
    [("materialized", False, 0), ("materialized", True, 1), ("sdpa", True, 0)],
)
def test_a_step_takes_what_was_predicted(kernel: Any, bf16: bool, num_conv_blocks: int, tmp_path: Path) -> None:
    model = MODEL.model_copy(update={"num_conv_blocks": num_conv_blocks})
    predicted = training_memory(model, tiny_recipe(), kernel=kernel, bf16=bf16, images=16)
    assert predicted == pytest.approx(_seen_by_the_profiler(model, kernel, bf16, 16, tmp_path / "trace"), rel=0.1)


@pytest.mark.parametrize(("num_heads", "num_conv_blocks"), [(1, 0), (32, 0), (8, 2)])
def test_inference_takes_no_more_than_was_predicted(num_heads: int, num_conv_blocks: int, tmp_path: Path) -> None:
    model = MODEL.model_copy(
        update={"num_heads": num_heads, "num_conv_blocks": num_conv_blocks, "attention": "materialized"}
    )
    network, images = CCT(model).eval(), torch.rand(16, 3, 32, 32)
    with torch.inference_mode():
        seen = _peak_of_profile(lambda: network(images), tmp_path / "trace")
    assert seen <= 16 * inference_memory(model) <= 5 * seen


def test_what_adds_to_it() -> None:
    def needed(model: ModelConfig = MODEL, images: int = 16, **recipe: Any) -> int:
        return training_memory(model, tiny_recipe(**recipe), kernel="materialized", bf16=False, images=images)

    weights = 4 * sum(parameter.numel() for parameter in CCT(MODEL).parameters())
    assert needed(ema_decay=0.9) - needed() == pytest.approx(weights, rel=0.01)
    assert needed(images=64) > 3 * needed()
    assert needed(MODEL.model_copy(update={"num_heads": 32})) > 2 * needed()


@pytest.mark.parametrize(
    ("num_heads", "num_conv_blocks", "mlp_ratio", "embed_dim"),
    [(1, 0, 1.0, 64), (32, 0, 4.0, 32), (1, 2, 4.0, 64)],
)
def test_the_rough_bound_is_one(num_heads: int, num_conv_blocks: int, mlp_ratio: float, embed_dim: int) -> None:
    model = ModelConfig(
        img_size=16, num_classes=10, embed_dim=embed_dim, depth=2, num_heads=num_heads, mlp_ratio=mlp_ratio,
        num_conv_blocks=num_conv_blocks, conv_kind="depthwise", num_tokenizer_convs=2, tokenizer_dim=96,
    )  # fmt: skip
    for images in (1, 32):
        needed = training_memory(model, tiny_recipe(), kernel="materialized", bf16=False, images=images)
        assert needed <= memory._upper_bound(model, images) <= 30 * needed


def _fitting(model: ModelConfig, bytes_free: int, **recipe: Any) -> ComputePlan:
    return fitting_plan(MATERIALIZED, model, tiny_recipe(**recipe), images=16, device=CPU, memory=bytes_free)


def test_the_fastest_way_that_fits() -> None:
    model = MODEL.model_copy(update={"attention": "auto", "num_heads": 32})
    by_default = training_memory(model, tiny_recipe(), kernel="materialized", bf16=False, images=16)
    assert _fitting(model, 1000 * by_default) == _fitting(model, by_default) == MATERIALIZED
    other = _fitting(model, by_default - 1)
    assert other.attention.training != "materialized"
    assert other.attention.inference == "sdpa"


def test_no_way_fits() -> None:
    model = MODEL.model_copy(update={"attention": "materialized"})
    needed = training_memory(model, tiny_recipe(), kernel="materialized", bf16=False, images=16)
    with pytest.raises(
        MemoryShortageError, match=r"^a training step needs .* GiB at least \(16 images, fp32, attention"
    ):
        _fitting(model, needed - 1, precision="fp32")


def test_a_trainer_takes_the_way_that_fits_or_none() -> None:
    model, dataset = tiny_model(attention="auto"), tiny_dataset()
    recipe = tiny_recipe(precision="fp32")
    assert TrainState(model, recipe, dataset, device=CPU, memory=1 << 40).plan.precision == "fp32"
    with pytest.raises(MemoryShortageError, match=r"0\.0 GiB are free"):
        TrainState(model, recipe, dataset, device=CPU, memory=1000)


def test_a_trial_that_cannot_fit_fails_with_that_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "free_memory", lambda device: 1000)
    job = TrainingJob("t0000", tiny_model(), tiny_recipe(), tmp_path / "t0000.pt")
    ((event,),) = train_jobs([job], tiny_dataset(), device=CPU, threads=1)
    assert isinstance(event, Failed)
    assert event.failure.kind == "memory"
    assert event.failure.reason.startswith("MemoryShortageError: a training step needs")


@pytest.fixture
def cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(device_memory, "_CGROUP", tmp_path)
    return tmp_path


def test_a_container_has_what_its_limit_leaves(cgroup: Path) -> None:
    machine = free_memory(CPU)
    assert machine > 1 << 20
    (cgroup / "memory.max").write_text("5000000\n")
    (cgroup / "memory.current").write_text("2000000\n")
    assert free_memory(CPU) == 3_000_000
    (cgroup / "memory.max").write_text("max\n")
    assert free_memory(CPU) == pytest.approx(machine, rel=0.5)
