"""Which finalists form committees, and what the rows say of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_data import tiny_model

from lsmha.committees import committee_predictions
from lsmha.io.tables import write_table
from lsmha.training.saved import StoredLogits
from orchestrator.config.sweep import CommitteesConfig
from orchestrator.errors import UserError
from orchestrator.reporting.plots import plot_committees
from orchestrator.reporting.tables import committees_table
from orchestrator.run_folder.committee_rows import CommitteeSize
from orchestrator.stages.committee_groups import Member, committee_groups
from orchestrator.stages.committees import form_committees

CONFIG = CommitteesConfig(resamples=200)


def member(name: str, *, seed: int, val_accuracy: float = 0.5, latency_ms: float | None = 1.0, **model: Any) -> Member:
    """A member that is right on about six images of ten, on other ones than the rest."""
    generator = torch.Generator().manual_seed(sum(name.encode()) * 100 + seed)
    labels = torch.arange(60) % 3
    noise = torch.randn(60, 3, generator=generator)
    logits = noise + torch.nn.functional.one_hot(labels, 3)
    return Member(
        id=f"{name}-s{seed}",
        run="run",
        trial=name,
        model=tiny_model(**model).canonical(),
        seed=seed,
        latency_ms=latency_ms,
        val_accuracy=val_accuracy,
        validation=StoredLogits(logits.flip(0), labels.flip(0), "f"),
        logits=logits,
        labels=labels,
        fingerprint="f",
    )


def pool() -> list[Member]:
    """Head counts 1, 2 and 4 with three seeds each, a worse rival with 2 heads, and two CNNs with two seeds each."""
    members = [member(f"h{heads}", seed=seed, num_heads=heads) for heads in (1, 2, 4) for seed in (0, 1, 2)]
    members += [member("rival", seed=seed, num_heads=2, mlp_ratio=1.0, val_accuracy=0.4) for seed in (0, 1, 2)]
    members += [
        member(f"cnn-{kind}", seed=seed, num_conv_blocks=2, conv_kind=kind, latency_ms=0.5)
        for kind in ("conv3x3", "depthwise")
        for seed in (0, 1)
    ]
    return members


def ids(members: list[Member], committees: list[tuple[int, ...]]) -> list[tuple[str, ...]]:
    return [tuple(members[index].id for index in chosen) for chosen in committees]


def test_groups() -> None:
    members = pool()
    groups = [(group.name, ids(members, group.committees)) for group in committee_groups(members)]
    assert groups == [
        ("all", [tuple(member.id for member in members if not member.is_cnn)]),
        ("mixed_heads", [(f"h1-s{a}", f"h2-s{b}", f"h4-s{c}") for a, b, c in ((0, 1, 2), (1, 2, 0), (2, 0, 1))]),
        ("same_architecture", [tuple(f"{name}-s{seed}" for seed in (0, 1, 2)) for name in ("h1", "h2", "h4")]),
        ("cnn", [("cnn-conv3x3-s0", "cnn-depthwise-s1"), ("cnn-conv3x3-s1", "cnn-depthwise-s0")]),
        (
            "cnn_same_architecture",
            [tuple(f"cnn-{kind}-s{seed}" for seed in (0, 1)) for kind in ("conv3x3", "depthwise")],
        ),
    ]


def test_mixed_committees_are_also_as_large_as_those_of_seeds() -> None:
    members = [member(f"h{heads}", seed=seed, num_heads=heads) for heads in (1, 2, 4) for seed in (0, 1)]
    groups = [(group.name, ids(members, group.committees)) for group in committee_groups(members)]
    pairs = [(f"h{a}-s{seed}", f"h{b}-s{1 - seed}") for a, b in ((1, 2), (1, 4), (2, 4)) for seed in (0, 1)]
    assert ("mixed_heads", pairs) in groups
    # Three networks and two seeds: one seed comes twice.
    assert ("mixed_heads", [(f"h1-s{seed}", f"h2-s{1 - seed}", f"h4-s{seed}") for seed in (0, 1)]) in groups


def test_a_failed_seed_leaves_the_contrast_balanced() -> None:
    members = [member for member in pool()[:9] if member.id != "h1-s2"]
    for group in committee_groups(members)[1:]:
        counts = np.bincount(np.ravel(group.committees), minlength=len(members))
        used = [members[index].id for index in np.flatnonzero(counts)]
        assert used == [f"h{heads}-s{seed}" for heads in (1, 2, 4) for seed in (0, 1)], group.name
        assert len(set(counts[counts > 0])) == 1, group.name


def test_recipes_of_one_architecture_do_not_mix() -> None:
    slow = [member("slow", seed=seed, num_heads=1, val_accuracy=0.3) for seed in (0, 1, 2)]
    fast = [member("fast", seed=seed, num_heads=1, val_accuracy=0.9) for seed in (0, 1, 2)]
    members = [*slow, *fast, *(member("h2", seed=seed, num_heads=2) for seed in (0, 1, 2))]
    groups = {(group.name, group.size): ids(members, group.committees) for group in committee_groups(members)}
    assert groups["mixed_heads", 2] == [("fast-s0", "h2-s1"), ("fast-s1", "h2-s2"), ("fast-s2", "h2-s0")]
    assert groups["same_architecture", 3] == [tuple(f"{name}-s{seed}" for seed in range(3)) for name in ("fast", "h2")]


def test_of_many_committees_an_even_part_is_scored() -> None:
    members = [
        member(f"h{heads}", seed=seed, embed_dim=64, num_heads=heads)
        for heads in (1, 2, 4, 8, 16, 32, 64)
        for seed in (0, 1, 2)
    ]
    (triples,) = [group for group in committee_groups(members) if (group.name, group.size) == ("mixed_heads", 3)]
    assert (len(triples.committees), triples.num_possible) == (64, 105)
    counts = np.bincount(np.ravel(triples.committees), minlength=len(members)).reshape(7, 3).sum(axis=1)
    assert counts.min() > 0.6 * counts.max()


def test_large_pools_need_validation_logits_of_the_same_images() -> None:
    members = pool()[:6]
    config = CONFIG.model_copy(update={"max_exhaustive": 4})
    whole = members[3]
    shifted = whole.validation._replace(labels=whole.validation.labels.roll(1))
    for broken in (None, shifted):
        members[3] = replace(whole, validation=broken)
        assert form_committees(members, CONFIG, seed=0)
        with pytest.raises(UserError, match=r"6 members are chosen by validation logits.*h1-s0 and h2-s0"):
            form_committees(members, config, seed=0)


def test_one_member_is_no_committee() -> None:
    assert form_committees([member("h1", seed=0)], CONFIG, seed=0) == []


def test_rows(tmp_path: Path) -> None:
    members, seen = pool(), []
    rows = form_committees(members, CONFIG, seed=0, on_progress=lambda *step: seen.append(step))
    assert seen[-1][0] == seen[-1][1]
    write_table(tmp_path / "committees.parquet", [row.row() for row in rows])
    table = pd.read_parquet(tmp_path / "committees.parquet")

    single = table[(table["kind"] == "committee") & (table["rule"] == "softmax")]
    logits, labels = torch.stack([member.logits for member in members]), members[0].labels
    names = [member.id for member in members]
    for row in single.to_dict("records"):
        chosen = [names.index(name) for name in row["members"]]
        right = (committee_predictions(logits[chosen], "softmax") == labels).double()
        accuracies = (logits[chosen].argmax(2) == labels).double().mean(1)
        assert row["accuracy"] == pytest.approx(right.mean().item())
        assert row["gain_over_best"] == pytest.approx(row["accuracy"] - accuracies.max().item())
        assert row["gain_over_mean"] == pytest.approx(row["accuracy"] - accuracies.mean().item())
        assert row["gain_over_best_low"] <= row["gain_over_best"] <= row["gain_over_best_high"]
        assert row["latency_sum_ms"] == pytest.approx(sum(members[index].latency_ms for index in chosen))
        assert row["latency_max_ms"] == max(members[index].latency_ms for index in chosen)

    groups = table[(table["kind"] == "group") & (table["rule"] == "softmax")].set_index("group")
    for name, of_group in single.groupby("group"):
        assert groups.loc[name, "accuracy"] == pytest.approx(of_group["accuracy"].mean())
        assert groups.loc[name, "gain_over_best"] == pytest.approx(of_group["gain_over_best"].mean())
    (contrast,) = table[(table["kind"] == "contrast") & (table["rule"] == "softmax")].to_dict("records")
    gap = groups.loc["mixed_heads", "accuracy"] - groups.loc["same_architecture", "accuracy"]
    assert contrast["gain"] == pytest.approx(gap)
    assert contrast["gain_low"] <= gap <= contrast["gain_high"]
    assert set(table["rule"]) == {"softmax", "logits", "majority"}

    plot_committees(rows, tmp_path / "committees.png", title="tiny")
    assert (tmp_path / "committees.png").read_bytes().startswith(b"\x89PNG")
    assert committees_table(rows).row_count == len(groups) + 1


def test_curves_go_through_every_subset_of_a_small_pool() -> None:
    rows = form_committees(pool()[:5], CONFIG, seed=0)
    curve = [row for row in rows if isinstance(row, CommitteeSize)]
    assert [row.num_committees for row in curve] == [5, 10, 10, 5, 1]
    assert all(row.lowest_accuracy <= row.accuracy <= row.highest_accuracy for row in curve)
    assert {row.selection for row in curve} == {"every subset"}


def test_curves_of_a_large_pool_choose_by_validation_accuracy() -> None:
    members = pool()[:6]
    rows = form_committees(members, CONFIG.model_copy(update={"max_exhaustive": 4}), seed=0)
    curve = [row for row in rows if isinstance(row, CommitteeSize)]
    assert [row.size for row in curve] == [1, 2, 3, 4, 5, 6]
    assert {row.selection for row in curve} == {"greedy by validation accuracy"}
    stored = [member.validation for member in members]
    best = np.argmax([(member.logits.argmax(1) == member.labels).double().mean().item() for member in stored])
    alone = (members[best].logits.argmax(1) == members[best].labels).double().mean().item()
    assert curve[0].accuracy == pytest.approx(alone)
