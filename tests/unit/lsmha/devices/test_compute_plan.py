"""What `auto` chooses: by time where it is clear, by the default where it is not, and what was chosen stays."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
import torch
from tiny_data import tiny_dataset, tiny_model, tiny_recipe

from lsmha.config import AttentionKernel
from lsmha.devices import compute_plan
from lsmha.devices.compute_plan import ComputePlan, Promise, fastest, fastest_inference, plan_training
from lsmha.models import CCT
from lsmha.models.attention import AttentionKernels
from lsmha.training import Trainer, TrainState, train

CPU = torch.device("cpu")
KERNELS = get_args(AttentionKernel)


class Stopwatch:
    """Stands in for the clock: each way takes the seconds that its name says, and is noted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: dict[str, float]) -> None:
        self.timed: list[str] = []
        self.candidates = {name: self._candidate(name) for name in seconds}
        self._seconds, self._latest = seconds, ""
        monkeypatch.setattr(compute_plan, "computing_seconds_of", self._time)

    def _candidate(self, name: str) -> Callable[[], None]:
        def work() -> None:
            self._latest = name
            if self._seconds[name] < 0:
                raise torch.OutOfMemoryError("too large")

        return work

    def _time(self, work: Callable[[], None], device: torch.device) -> float:
        work()
        self.timed.append(self._latest)
        return self._seconds[self._latest]


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ({"default": 1.0, "other": 0.95}, "default"),
        ({"default": 1.0, "other": 0.85}, "other"),
        ({"default": 1.0, "other": 0.85, "third": 0.8}, "third"),
        ({"default": 5.0, "other": 1.0}, "other"),
        ({"default": -1.0, "other": 1.0, "third": 0.95}, "other"),
        ({"default": 1.0, "other": -1.0}, "default"),
        ({"default": -1.0, "other": -1.0}, "default"),
    ],
)
def test_the_default_gives_way_to_what_is_clearly_faster(
    seconds: dict[str, float], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fastest(Stopwatch(monkeypatch, seconds).candidates, CPU) == expected


def test_ways_that_were_given_up_are_timed_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    stopwatch = Stopwatch(monkeypatch, {"default": 1.0, "slow": 2.1, "close": 1.9})
    fastest(stopwatch.candidates, CPU)
    assert stopwatch.timed.count("slow") == 2
    assert stopwatch.timed.count("close") == stopwatch.timed.count("default") > 3


@pytest.mark.parametrize("disturbed", range(2))
@pytest.mark.parametrize("faster", ["default", "other"])
def test_a_disturbed_turn_decides_nothing(disturbed: int, faster: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever turn of the faster one it is, and however long it then took."""
    stopwatch = Stopwatch(monkeypatch, {"default": 1.0, "other": 1.0, faster: 0.8})

    def timed(work: Callable[[], None], device: torch.device) -> float:
        seconds = stopwatch._time(work, device)
        turn = stopwatch.timed.count(faster) - 1
        return 50.0 if stopwatch.timed[-1] == faster and turn == disturbed else seconds

    monkeypatch.setattr(compute_plan, "computing_seconds_of", timed)
    assert fastest(stopwatch.candidates, CPU) == faster


def test_one_way_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    stopwatch = Stopwatch(monkeypatch, {"only": -1.0})
    assert fastest(stopwatch.candidates, CPU) == "only"
    assert stopwatch.timed == []


def _asked_of(monkeypatch: pytest.MonkeyPatch) -> list[list[object]]:
    """Ways that a plan was made from, in the order in which they are tried; the last one wins."""
    asked: list[list[object]] = []

    def last(candidates: dict[object, Callable[[], None]], device: torch.device) -> object:
        asked.append(list(candidates))
        for work in candidates.values():
            work()
        return list(candidates)[-1]

    monkeypatch.setattr(compute_plan, "fastest", last)
    compute_plan._plans.clear()
    return asked


@pytest.mark.parametrize("bf16", [True, False])
def test_what_is_left_open_is_measured(bf16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = _asked_of(monkeypatch)
    monkeypatch.setattr(compute_plan, "supports_bf16", lambda device: bf16)
    model, recipe = tiny_model(attention="auto"), tiny_recipe(precision="auto")
    plan = plan_training(model, recipe, device=CPU)
    kernels = ["materialized", "sdpa", "sdpa-padded"]
    in_bf16 = [("bf16", kernel) for kernel in (*kernels, "sdpa-fp32")] if bf16 else []
    assert asked == [
        [*in_bf16, *(("fp32", kernel) for kernel in kernels)],
        ["sdpa", "materialized", "sdpa-padded"],
    ]
    assert plan == ComputePlan("fp32", AttentionKernels("sdpa-padded", "sdpa-padded"))
    assert plan_training(model, recipe, device=CPU) == plan
    assert plan_training(tiny_model(attention="auto", depth=5), recipe, device=CPU) == plan
    assert len(asked) == 2  # of the same blocks, so not measured again


def test_settings_are_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = _asked_of(monkeypatch)
    model = tiny_model(attention="sdpa-padded")
    for precision in ("fp32", "bf16"):
        plan = plan_training(model, tiny_recipe(precision=precision), device=CPU)
        assert plan == ComputePlan(precision, AttentionKernels("sdpa-padded", "sdpa-padded"))
    assert {len(candidates) for candidates in asked} == {1}


def test_a_plain_cnn_has_no_kernels_to_choose_from(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = _asked_of(monkeypatch)
    monkeypatch.setattr(compute_plan, "supports_bf16", lambda device: True)
    plan_training(tiny_model(attention="auto", num_conv_blocks=2), tiny_recipe(precision="auto"), device=CPU)
    assert [len(candidates) for candidates in asked] == [2, 1]


def test_heads_of_whole_registers_are_not_padded(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = _asked_of(monkeypatch)
    model = tiny_model(attention="auto", embed_dim=16, num_heads=2)
    assert fastest_inference(model, batch_size=3, dtype=torch.bfloat16, device=CPU) == "sdpa-fp32"
    assert asked == [["sdpa", "materialized", "sdpa-fp32"]]
    assert fastest_inference(tiny_model(), batch_size=3, dtype=torch.float32, device=CPU) == "materialized"
    assert len(asked) == 1  # a setting


def test_a_real_measurement_leaves_the_random_state() -> None:
    compute_plan._plans.clear()
    torch.manual_seed(7)
    before = torch.get_rng_state()
    model = tiny_model(attention="auto", attn_drop=0.5, num_conv_blocks=1)
    plan = plan_training(model, tiny_recipe(precision="auto"), device=CPU)
    assert plan.precision in ("bf16", "fp32")
    assert fastest_inference(model, batch_size=2, dtype=torch.float32, device=CPU) in KERNELS
    assert set(plan.attention) <= set(KERNELS)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_run_goes_on_as_it_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, model = tiny_dataset(), tiny_model(attention="auto")
    recipe = tiny_recipe(precision="auto", epochs=2, ema_decay=0.9)
    first = ComputePlan("bf16", AttentionKernels("sdpa-padded", "materialized"))
    second = ComputePlan("fp32", AttentionKernels("materialized", "sdpa"))
    monkeypatch.setattr("lsmha.training.state.plan_training", lambda *_, **__: first)
    begun = Trainer(model, recipe, dataset, device=CPU)
    begun.run_epoch()
    begun.state.save(tmp_path / "run.pt")
    begun.run_epoch()
    monkeypatch.setattr("lsmha.training.state.plan_training", lambda *_, **__: second)
    assert TrainState(model, recipe, dataset, device=CPU).plan == second
    ended = train(model, recipe, dataset, device=CPU, resume_from=tmp_path / "run.pt")
    assert ended.plan == first
    for network in (ended.model, ended.evaluated_model):
        assert _kernels_of(network) == {first.attention}
    assert ended.history[-1].train_loss == begun.state.history[-1].train_loss
    assert ended.history[-1].val_loss == begun.state.history[-1].val_loss


def test_a_plan_promises_what_was_measured() -> None:
    compute_plan._plans.clear()
    recipe = tiny_recipe(precision="auto")
    shallow, deep = (
        plan_training(tiny_model(attention="auto", depth=depth), recipe, device=CPU).promise for depth in (1, 4)
    )
    assert shallow is not None
    assert deep is not None
    assert shallow.images_per_s == 4 * deep.images_per_s > 0
    assert 0 <= shallow.waited <= 1
    settings = tiny_recipe(precision="fp32")
    assert plan_training(tiny_model(attention="sdpa"), settings, device=CPU).promise is None
    again = plan_training(tiny_model(attention="auto"), recipe, device=CPU, once_more=True)
    assert again.promise is None
    assert plan_training(tiny_model(attention="auto"), recipe, device=CPU) is again


def test_where_no_way_works_the_default_is_planned_and_promises_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    compute_plan._plans.clear()

    def fails(*_: object) -> None:
        raise torch.OutOfMemoryError("too large")

    monkeypatch.setattr(compute_plan, "_train", fails)
    monkeypatch.setattr(compute_plan, "supports_bf16", lambda device: False)
    plan = plan_training(tiny_model(attention="auto"), tiny_recipe(precision="auto"), device=CPU)
    assert (plan.precision, plan.attention.training, plan.promise) == ("fp32", "materialized", None)
    compute_plan._plans.clear()


@pytest.mark.parametrize(("waited", "disturbed"), [(0.0, False), (0.1, False), (0.4, True)])
def test_a_plan_knows_of_other_work(waited: float, disturbed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    compute_plan._plans.clear()
    began = time.perf_counter()
    monkeypatch.setattr(compute_plan, "cpu_wait_s", lambda: waited * (time.perf_counter() - began))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    promise = plan_training(tiny_model(attention="auto"), tiny_recipe(precision="auto"), device=CPU).promise
    assert promise is not None
    assert promise.disturbed == disturbed
    assert promise.waited == pytest.approx(waited, abs=0.05)


@pytest.mark.parametrize(("images_per_s", "measured"), [(1e12, True), (1e-12, False), (None, False)])
def test_a_run_far_slower_than_promised_is_planned_once_more(
    images_per_s: float | None, measured: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    promise = None if images_per_s is None else Promise(images_per_s, 0.0)
    first = ComputePlan("fp32", AttentionKernels("sdpa", "sdpa"), promise)
    second = ComputePlan("bf16", AttentionKernels("materialized", "sdpa"))
    asked: list[bool] = []

    def plan(*_: object, device: torch.device, once_more: bool) -> ComputePlan:
        asked.append(once_more)
        return second if once_more else first

    monkeypatch.setattr("lsmha.training.state.plan_training", plan)
    trainer = Trainer(tiny_model(attention="auto"), tiny_recipe(epochs=6), tiny_dataset(), device=CPU)
    outcomes, plans = [], []
    for _ in range(5):
        trainer.run_epoch()
        outcomes.append(trainer.state.reconsider_plan())
        plans.append(trainer.state.plan)
    assert outcomes == [False, measured, False, False, False]
    assert plans == [first, *[second if measured else first] * 4]
    assert asked == [False, True] if measured else [False]
    assert _kernels_of(trainer.state.model) == {plans[-1].attention}
    trainer.state.save(tmp_path / "run.pt")
    resumed = Trainer(tiny_model(attention="auto"), tiny_recipe(epochs=6), tiny_dataset(), device=CPU)
    resumed.resume(tmp_path / "run.pt", on_damage=pytest.fail)
    assert resumed.state.plan == plans[-1]
    assert resumed.run_epoch().train_loss == trainer.run_epoch().train_loss


def _kernels_of(network: CCT) -> set[AttentionKernels | None]:
    return {block.attn.kernels for block in network.blocks}  # type: ignore[union-attr,misc]


def test_a_plan_travels_as_plain_values() -> None:
    plan = ComputePlan("bf16", AttentionKernels("sdpa", "materialized"))
    values = plan.to_dict()
    assert values == {"precision": "bf16", "training_attention": "sdpa", "inference_attention": "materialized"}
    assert ComputePlan.from_dict(values) == plan


@pytest.mark.parametrize(
    ("settings", "asked", "expected"),
    [({}, 3, 3), ({}, 500, 500), ({"embed_dim": 256, "num_heads": 256, "img_size": 32}, 500, 8)],
)
def test_a_measurement_takes_the_images_of_a_batch_and_little_memory(
    settings: dict[str, int], asked: int, expected: int
) -> None:
    model = tiny_model(**settings)
    assert len(compute_plan._images(model, asked, CPU)) == expected
