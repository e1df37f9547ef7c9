"""Compiled networks beside eager ones: the same logits, and a latency of their own."""

from __future__ import annotations

import pytest
import torch
from tiny_data import tiny_dataset, tiny_model, tiny_recipe
from torch._dynamo.utils import counters
from torch.testing import assert_close

from lsmha.config import LatencyConfig, ModelConfig
from lsmha.latency import measure_latency
from lsmha.models import CCT
from lsmha.models.attention import AttentionKernels
from lsmha.training import train

CPU = torch.device("cpu")

# What checks annotations is no code to compile.
pytestmark = pytest.mark.usefixtures("unchecked")


@pytest.mark.parametrize(
    ("kernel", "num_heads", "num_conv_blocks"),
    [("materialized", 4, 0), ("sdpa", 16, 1)],
)
def test_compiled_networks_compute_the_same(kernel: str, num_heads: int, num_conv_blocks: int) -> None:
    config = ModelConfig.model_validate(
        {"img_size": 8, "num_classes": 5, "embed_dim": 16, "depth": 2, "num_heads": num_heads,
         "num_conv_blocks": num_conv_blocks, "attention": kernel, "attn_drop": 0.0, "drop_path": 0.0}
    )  # fmt: skip
    torch.manual_seed(0)
    network = CCT(config)
    network.use_kernels(AttentionKernels(kernel, kernel))  # type: ignore[arg-type]
    images, labels = torch.rand(6, 3, 8, 8), torch.arange(6) % 5
    torch.compiler.reset()
    compiled = torch.compile(network, dynamic=False)
    assert_close(compiled(images), network(images), atol=1e-5, rtol=1e-4)
    gradients = []
    for run in (network, compiled):
        network.zero_grad()
        torch.nn.functional.cross_entropy(run(images), labels).backward()
        gradients.append([parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None])
    assert gradients[0]
    assert_close(gradients[1], gradients[0], atol=1e-5, rtol=1e-4)
    network.eval()
    with torch.inference_mode():
        assert_close(compiled(images), network(images), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("num_conv_blocks", "precision", "tolerance"), [(0, "fp32", 1e-5), (1, "bf16", 2e-2)])
def test_compiled_training_goes_as_eager_training_does(num_conv_blocks: int, precision: str, tolerance: float) -> None:
    model = tiny_model(num_conv_blocks=num_conv_blocks)
    recipe = tiny_recipe(precision=precision, ema_decay=0.9, mode="compiled", epochs=2)
    dataset = tiny_dataset()
    compiled, eager = (
        train(model, recipe.model_copy(update={"mode": mode}), dataset, device=CPU) for mode in ("compiled", "eager")
    )
    for epoch, other in zip(compiled.history, eager.history, strict=True):
        assert epoch.train_loss == pytest.approx(other.train_loss, rel=tolerance)
        assert epoch.val_loss == pytest.approx(other.val_loss, rel=tolerance)
    made = counters["stats"]["unique_graphs"]
    other_run = recipe.model_copy(update={"seed": 7, "learning_rate": 1e-2, "epochs": 1, "warmup_epochs": 0.5})
    again = train(model, other_run, dataset, device=CPU)
    assert again.history[0].train_loss != compiled.history[0].train_loss
    assert counters["stats"]["unique_graphs"] == made  # nothing was compiled for another seed and learning rate


def test_as_many_architectures_are_compiled_as_there_are() -> None:
    made = counters["stats"]["unique_graphs"]
    with torch._dynamo.config.patch(recompile_limit=1):
        for num_heads in (1, 4, 8):
            train(tiny_model(num_heads=num_heads, depth=1), tiny_recipe(mode="compiled"), tiny_dataset(), device=CPU)
    assert counters["stats"]["unique_graphs"] == made + 3


def test_a_cuda_graph_needs_a_gpu() -> None:
    with pytest.raises(
        ValueError, match=r"^train\.mode: must be eager or compiled without a GPU, but got 'cuda-graph'$"
    ):
        train(tiny_model(), tiny_recipe(mode="cuda-graph"), tiny_dataset(), device=CPU)


def test_compiled_latency_is_measured_after_compilation() -> None:
    config = ModelConfig(img_size=8, num_classes=5, embed_dim=16, depth=1, num_heads=4)
    latency = LatencyConfig(batch_sizes=(1, 4), mode="compiled", warmup_s=0, min_iterations=5, max_seconds=0.1)
    rows = measure_latency(config, latency, device=CPU)
    assert [(row.mode, row.batch_size) for row in rows] == [("compiled", 1), ("compiled", 4)]
    assert all(row.latency_ms < 100 for row in rows)  # to compile takes seconds
