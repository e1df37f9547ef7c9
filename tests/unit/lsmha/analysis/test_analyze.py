"""The analysis from a network to its files: it finds what was put there, and refuses what does not fit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_data import tiny_dataset, tiny_model, tiny_recipe

from lsmha.analysis import Tap, analyze
from lsmha.analysis.plots import cluster_order, save_plots
from lsmha.analysis.saved import block_rows, load_fields, save_analysis
from lsmha.config import AnalysisConfig
from lsmha.models import CCT
from lsmha.training import train
from orchestrator.reporting.tables import analysis_table, main_rows

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trained() -> CCT:
    """A hybrid that tells the three patterns apart."""
    config = tiny_model(embed_dim=16, num_heads=4, depth=3, num_conv_blocks=1)
    recipe = tiny_recipe(epochs=12, learning_rate=3e-3)
    return train(config, recipe, tiny_dataset(), device=CPU).evaluated_model


def test_analysis_of_a_trained_network(trained: CCT, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    dataset = tiny_dataset()
    analysis = analyze(
        trained, dataset, AnalysisConfig(permutations=50), device=CPU, on_progress=lambda *step: seen.append(step)
    )
    assert [str(tap.tap) for tap in analysis.taps] == ["block0.block", "block1.attn", "block2.attn"]
    assert [[group.kind for group in tap.groups] for tap in analysis.taps] == [["filter"], *[["head", "node"]] * 2]
    assert {step[0] for step in seen} == {"read-outs: features", "read-outs: solving", "fields", "clusters"}
    assert all(step[1] == step[2] for step in seen if step[0] == "fields")
    assert analysis.test_accuracy > 0.9
    last = analysis.taps[-1]
    assert last.accuracy.readout > 0.9
    heads = last.groups[0]
    # The read-out tells the labels apart, so its mean logits are largest on the diagonal.
    assert (last.logits.argmax(dim=1) == torch.arange(3)).all()
    assert heads.statistics.field_snr > 1
    torch.testing.assert_close(heads.fields.sum(dim=0), last.logits, rtol=0, atol=1e-5)

    save_analysis(analysis, tmp_path)
    save_plots(analysis, tmp_path, title="tiny")
    assert {path.name for path in tmp_path.iterdir()} == {
        *("fields.safetensors", "blocks.parquet", "heads.parquet", "incidence.parquet", "analysis.json"),
        *("blocks.png", "heads_per_label.png", "shp_block1.png", "shp_block2.png"),
    }
    fields = load_fields(tmp_path)
    assert fields["block0.block.filter"].shape == (16, 3, 3)
    assert fields["block2.attn.node"].shape == (16, 3, 3)
    torch.testing.assert_close(fields["block2.attn.head"], heads.fields)
    blocks = pd.read_parquet(tmp_path / "blocks.parquet")
    assert list(zip(blocks["block"], blocks["unit"], blocks["num_units"], strict=True)) == [
        (0, "filter", 16), (1, "head", 4), (1, "node", 16), (2, "head", 4), (2, "node", 16),
    ]  # fmt: skip
    units = pd.read_parquet(tmp_path / "heads.parquet")
    assert len(units) == 16 + 2 * (4 + 16)
    per_head = units[(units["block"] == 2) & (units["unit"] == "head")]
    assert per_head["accuracy_alone"].tolist() == pytest.approx(last.accuracy.alone.tolist())
    assert per_head["num_labels"].sum() == heads.incidence.sum()
    incidence = pd.read_parquet(tmp_path / "incidence.parquet")
    assert len(incidence) == units["num_labels"].sum()
    assert set(incidence["class_name"]) <= {"a", "b", "c"}
    description = json.loads((tmp_path / "analysis.json").read_text())
    assert description["test_fingerprint"] == dataset.fingerprint
    assert AnalysisConfig.model_validate_json(json.dumps(description["analysis"])) == analysis.config


def test_all_taps(trained: CCT) -> None:
    config = AnalysisConfig(taps=("attn", "mlp", "block"), permutations=5)
    analysis = analyze(trained, tiny_dataset(), config, device=CPU)
    assert [tap.tap for tap in analysis.taps] == [
        Tap("block", 0),
        *(Tap(kind, block) for block in (1, 2) for kind in ("attn", "mlp", "block")),
    ]
    assert len(analysis.taps[2].groups[0].fields) == trained.config.mlp_dim


@pytest.mark.parametrize(("taps", "num_conv_blocks"), [(("block",), 0), (("mlp",), 2), (("block", "attn"), 0)])
def test_other_taps_are_saved_and_drawn(taps: tuple[str, ...], num_conv_blocks: int, tmp_path: Path) -> None:
    model = CCT(tiny_model(num_heads=1, num_conv_blocks=num_conv_blocks))
    analysis = analyze(model, tiny_dataset(), AnalysisConfig(taps=taps, permutations=5), device=CPU)
    save_analysis(analysis, tmp_path)
    save_plots(analysis, tmp_path, title="tiny")
    rows = pd.read_parquet(tmp_path / "blocks.parquet").to_dict("records")
    assert len(main_rows(rows)) == 2 * (1 if num_conv_blocks else len(taps))
    assert analysis_table("tiny", rows).row_count == len(main_rows(rows))
    json.dumps(block_rows(analysis), allow_nan=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_classes": 4}, "num_classes must be 3 for data set tiny, but the network has 4"),
        ({"img_size": 16}, "img_size must be 8 for data set tiny, but the network has 16"),
        ({"in_channels": 1}, "in_channels must be 3 for data set tiny, but the network has 1"),
    ],
)
def test_a_network_for_other_images(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        analyze(CCT(tiny_model(**settings)), tiny_dataset(), AnalysisConfig(), device=CPU)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_weights(value: float) -> None:
    model = CCT(tiny_model())
    with torch.no_grad():
        model.blocks[1].linear1.weight[0, 0] = value
    with pytest.raises(ValueError, match=r"weights must be finite, but blocks.1.linear1.weight has NaN or infinite"):
        analyze(model, tiny_dataset(), AnalysisConfig(), device=CPU)


def test_clusters_side_by_side() -> None:
    assert cluster_order([[1], [0, 3], [5]], 6).tolist() == [0, 3, 1, 5, 2, 4]
    assert np.array_equal(cluster_order([], 3), [0, 1, 2])
