"""Logits of a network over a split, their scores, and the test logits on disk."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from tiny_data import tiny_dataset, tiny_model

from lsmha.data import Dataset, normalize
from lsmha.models import CCT
from lsmha.training import evaluation, predict_logits, score_logits
from lsmha.training.saved import load_logits, save_logits

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")


def _model() -> CCT:
    torch.manual_seed(0)
    return CCT(tiny_model(drop_path=0.5, attn_drop=0.5))


def test_score_is_mean_cross_entropy_and_accuracy() -> None:
    logits = torch.log(torch.tensor([[0.7, 0.2, 0.1], [0.5, 0.25, 0.25], [0.1, 0.3, 0.6]]))
    loss, accuracy = score_logits(logits, torch.tensor([0, 1, 2]))
    assert loss == pytest.approx(-(math.log(0.7) + math.log(0.25) + math.log(0.6)) / 3)
    assert accuracy == pytest.approx(2 / 3)


@pytest.mark.parametrize("batch_size", [1, 7, 30, 500])
def test_logits_do_not_depend_on_the_batches(batch_size: int, tiny: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    model = _model()
    monkeypatch.setattr(evaluation, "BATCH_SIZE", batch_size)
    logits = predict_logits(model.train(), tiny.test.images, tiny, device=CPU)
    with torch.no_grad():  # in eval mode: no dropout
        expected = model.eval()(normalize(tiny.test.images, tiny.mean, tiny.std))
    torch.testing.assert_close(logits, expected, atol=1e-6, rtol=1e-5)


def test_batches_that_do_not_fit_are_halved_until_they_do(tiny: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    model, sizes = _model(), []
    expected = predict_logits(model, tiny.test.images, tiny, device=CPU)

    class Crowded(CCT):
        def forward(self, images: torch.Tensor, head_mask: torch.Tensor | None = None) -> torch.Tensor:
            sizes.append(len(images))
            if len(images) > 8:
                raise torch.cuda.OutOfMemoryError
            return super().forward(images, head_mask)

    model.__class__ = Crowded
    monkeypatch.setattr(evaluation, "BATCH_SIZE", 20)
    logits = predict_logits(model, tiny.test.images, tiny, device=CPU)
    torch.testing.assert_close(logits, expected, atol=1e-6, rtol=1e-5)
    assert sizes[:3] == [20, 10, 5]
    assert set(sizes[3:-1]) == {5}


def test_one_image_that_does_not_fit_is_an_error(tiny: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    model = _model()
    monkeypatch.setattr(model, "forward", full)
    with pytest.raises(torch.cuda.OutOfMemoryError, match="out of memory"):
        predict_logits(model, tiny.test.images, tiny, device=CPU)


@pytest.mark.parametrize(
    ("device", "num_heads", "total", "expected"),
    [
        ("cpu", 4, 1 << 40, 500),
        ("cuda", 4, 1 << 40, 16_383),
        ("cuda", 64, 1 << 40, 1_023),
        ("cuda", 64, 1 << 30, 32),
        ("cpu", 64, 1 << 10, 1),
    ],
)
def test_largest_batch(device: str, num_heads: int, total: int, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "total_memory", lambda _: total)
    monkeypatch.setattr(evaluation, "inference_memory", lambda model: 1 << 22)
    assert evaluation.largest_batch(tiny_model(embed_dim=64, num_heads=num_heads), torch.device(device)) == expected


def test_no_images_have_no_logits(tiny: Dataset) -> None:
    assert predict_logits(_model(), tiny.test.images[:0], tiny, device=CPU).shape == (0, 3)


def test_bf16_logits_are_float32_and_close(tiny: Dataset) -> None:
    exact, autocast = (
        predict_logits(_model(), tiny.test.images, tiny, device=CPU, bf16=bf16) for bf16 in (False, True)
    )
    assert exact.dtype == autocast.dtype == torch.float32
    assert 0.0 < (exact - autocast).abs().max().item() < 0.05


def test_test_logits_round_trip_with_labels_and_fingerprint(tiny: Dataset, tmp_path: Path) -> None:
    model = _model()
    score = save_logits(model, tmp_path / "trial", "test", dataset=tiny, device=CPU)
    stored = load_logits(tmp_path / "trial", "test")
    assert torch.equal(stored.logits, predict_logits(model, tiny.test.images, tiny, device=CPU))
    assert torch.equal(stored.labels, tiny.test.labels)
    assert stored.labels.dtype == torch.int64
    assert stored.fingerprint == tiny.fingerprint
    assert score_logits(stored.logits, stored.labels) == score
    assert len(list((tmp_path / "trial").iterdir())) == 1


def test_logits_of_another_test_set_have_another_fingerprint(tiny: Dataset, tmp_path: Path) -> None:
    model = _model()
    for seed in (0, 1):
        save_logits(model, tmp_path / str(seed), "test", dataset=tiny_dataset(seed=seed), device=CPU)
    fingerprints = [load_logits(tmp_path / str(seed), "test").fingerprint for seed in (0, 1)]
    assert fingerprints[0] == tiny.fingerprint != fingerprints[1]


def test_absent_logits_are_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="test_logits"):
        load_logits(tmp_path, "test")
