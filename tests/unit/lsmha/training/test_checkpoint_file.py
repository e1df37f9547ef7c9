"""Weights in the wrappers that training scripts put around them."""

from __future__ import annotations

import argparse
import types
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from published_names import to_published_key
from safetensors.torch import save_file
from tiny_data import tiny_model
from torch import Tensor

from lsmha.errors import ConfigurationError
from lsmha.models import CCT
from lsmha.training.saved import load_network

SIZE = tiny_model().img_size
IMAGES = torch.rand(2, tiny_model().in_channels, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def network(seed: int = 0) -> CCT:
    torch.manual_seed(seed)
    return CCT(tiny_model()).eval()


def published(seed: int = 0, prefix: str = "") -> dict[str, Tensor]:
    return {prefix + to_published_key(name): value for name, value in network(seed).state_dict().items()}


def loaded(path: Path) -> tuple[CCT, list[str]]:
    notes: list[str] = []
    return load_network(path, img_size=SIZE, num_heads=tiny_model().num_heads, on_note=notes.append), notes


def assert_is(model: CCT, seed: int = 0) -> None:
    with torch.no_grad():
        torch.testing.assert_close(model(IMAGES), network(seed)(IMAGES))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda w: w,
        lambda w: OrderedDict(w),
        lambda w: {"state_dict": w},
        lambda w: {"model": w, "epoch": 3},
        lambda w: {"model_state_dict": w, "optimizer": {"lr": 0.1}},
        lambda w: {"net": {"state_dict": w}},
        lambda w: {"model": {"module": w}},
    ],
)
def test_wrappers(tmp_path: Path, wrap: Callable[[dict[str, Tensor]], Any]) -> None:
    torch.save(wrap(published()), tmp_path / "x.pth")
    model, notes = loaded(tmp_path / "x.pth")
    assert_is(model)
    assert notes == []


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod.", "_orig_mod.module.", "model.module.", "net.cct."]
)
def test_prefixes(tmp_path: Path, prefix: str) -> None:
    torch.save({"state_dict": published(prefix=prefix)}, tmp_path / "x.pth")
    model, notes = loaded(tmp_path / "x.pth")
    assert_is(model)
    assert notes == []


def test_other_tensors_beside_the_network_are_said(tmp_path: Path) -> None:
    weights = {**published(prefix="module."), "n_averaged": torch.tensor(3)}
    torch.save(weights, tmp_path / "x.pth")
    model, notes = loaded(tmp_path / "x.pth")
    assert_is(model)
    assert notes == ["of the state_dict, 1 tensors outside of 'module.' are left out: n_averaged, ..."]


def test_two_networks_are_refused(tmp_path: Path) -> None:
    torch.save({**published(prefix="student."), **published(1, prefix="teacher.")}, tmp_path / "x.pth")
    with pytest.raises(ConfigurationError, match=r"must be of one network, but has student\. and teacher\."):
        loaded(tmp_path / "x.pth")


@pytest.mark.parametrize(
    ("weights", "averages"),
    [("state_dict", "state_dict_ema"), ("model", "model_ema"), ("model_state_dict", "ema_state_dict")],
)
def test_averages_are_taken_and_said(tmp_path: Path, weights: str, averages: str) -> None:
    torch.save({weights: published(0), averages: published(1, prefix="module.")}, tmp_path / "x.pth")
    model, notes = loaded(tmp_path / "x.pth")
    assert_is(model, seed=1)
    assert notes == [f"{tmp_path / 'x.pth'}: took the weights of {averages}; it also has those of {weights}"]


@pytest.mark.parametrize(
    "record",
    [
        argparse.Namespace(lr=0.1, data=Path("/data"), layers=[1, 2]),
        types.SimpleNamespace(lr=0.1),
        np.float64(0.71),
        np.float32(0.71),
        np.int64(7),
        np.bool_(True),
        {"best": np.float64(0.5), "path": Path("a")},
    ],
)
def test_plain_records_beside_them(tmp_path: Path, record: Any) -> None:
    torch.save({"state_dict": published(), "args": record}, tmp_path / "x.pth")
    assert_is(loaded(tmp_path / "x.pth")[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(tmp_path: Path, dtype: torch.dtype) -> None:
    torch.save({name: value.to(dtype) for name, value in published().items()}, tmp_path / "x.pth")
    model, _ = loaded(tmp_path / "x.pth")
    assert {value.dtype for value in model.parameters()} == {torch.float32}
    with torch.no_grad():
        torch.testing.assert_close(model(IMAGES), network()(IMAGES), atol=0.05, rtol=0.05)


@pytest.mark.parametrize("prefix", ["", "model.", "module."])
def test_safetensors(tmp_path: Path, prefix: str) -> None:
    weights = {name: value.contiguous() for name, value in published(prefix=prefix).items()}
    save_file(weights, tmp_path / "x.safetensors")
    assert_is(loaded(tmp_path / "x.safetensors")[0])


class Evil:
    ran = False

    def __reduce__(self) -> tuple[Any, ...]:
        return setattr, (Evil, "ran", True)


@pytest.mark.parametrize("culprit", [Evil(), print, Evil])
def test_code_is_not_run_and_what_is_in_the_way_is_named(tmp_path: Path, culprit: Any) -> None:
    torch.save({"state_dict": published(), "extra": culprit}, tmp_path / "x.pth")
    with pytest.raises(ConfigurationError, match=r"must be weights, .* it also holds a \S+, which may") as caught:
        loaded(tmp_path / "x.pth")
    assert not Evil.ran
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("name", ["x.pth", "x.safetensors"])
@pytest.mark.parametrize("content", [b"", b"no weights", bytes(1000), b"PK\x03\x04" + bytes(100)])
def test_files_that_are_no_checkpoints(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"must be ") as caught:
        loaded(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [{}, [1, 2], {"epoch": 3}, {"state_dict": {"a": 1}}, torch.ones(3)])
def test_checkpoints_without_weights(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(ConfigurationError, match="must hold a state_dict, but it holds"):
        loaded(tmp_path / "x.pth")
