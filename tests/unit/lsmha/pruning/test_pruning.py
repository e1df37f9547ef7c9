"""Pruning: which weights connect which units, what the labels keep, and that what is pruned stays so while training."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_data import assert_same_bits, tiny_model, tiny_recipe, without_timings
from torch import Tensor

from lsmha.config import ModelConfig
from lsmha.data import Dataset, normalize
from lsmha.models import CCT, create_model
from lsmha.pruning import (
    Connection,
    LayerKey,
    apply_masks,
    connection_masks,
    connections,
    kept_fraction,
    kept_of_model,
    layer_units,
    random_masks,
    remove_masks,
    retrain,
)
from lsmha.training import EpochMetrics, Trainer, TrainState, evaluate, train
from lsmha.training.saved import load_model, save_model

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
TRANSFORMER = tiny_model()
HYBRID = tiny_model(depth=3, num_conv_blocks=1, mlp_ratio=1.5)
LATE_HYBRID = tiny_model(depth=3, num_conv_blocks=2, conv_kind="residual")
NETWORKS = {
    "transformer": TRANSFORMER,
    "hybrid": HYBRID,
    "late_hybrid": LATE_HYBRID,
    "conv3x3": tiny_model(num_conv_blocks=2),
    "residual": tiny_model(num_conv_blocks=2, conv_kind="residual", drop_path=0.2),
    "depthwise": tiny_model(num_conv_blocks=2, conv_kind="depthwise"),
}
every_network = pytest.mark.parametrize("config", NETWORKS.values(), ids=NETWORKS.keys())


@pytest.fixture(autouse=True)
def _fixed_weights() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def _all_connections(config: ModelConfig) -> list[Connection]:
    return connections(config, "afcc") + connections(config, "andc")


def _random_labels(config: ModelConfig, *, seed: int = 0, density: float = 0.35) -> dict[LayerKey, Tensor]:
    """Labels of every layer that any connection could name, some units with none and some with several."""
    generator = torch.Generator().manual_seed(seed)
    layers = [(tap, block) for block in range(config.depth) for tap in ("attn", "mlp", "block")]
    return {
        layer: torch.rand(layer_units(config, layer), config.num_classes, generator=generator) < density
        for layer in layers
    }


def _masks(config: ModelConfig, **labels: Any) -> dict[str, Tensor]:
    return connection_masks(config, _all_connections(config), _random_labels(config, **labels))


# Which weights connect which units


def test_filters_of_a_plain_cnn_and_its_classifier_belong_to_afcc() -> None:
    for kind, layer in (("conv3x3", 0), ("residual", 0), ("depthwise", 3)):
        config = tiny_model(depth=3, num_conv_blocks=3, conv_kind=kind)
        assert connections(config, "afcc") == [
            Connection(f"blocks.1.layers.{layer}.weight", (0, 8), ("block", 0), ("block", 1)),
            Connection(f"blocks.2.layers.{layer}.weight", (0, 8), ("block", 1), ("block", 2)),
            Connection("head.weight", (0, 3), ("block", 2), None),
        ]
        assert connections(config, "andc") == []


def test_nodes_of_a_transformer_belong_to_andc() -> None:
    assert connections(TRANSFORMER, "andc") == [
        Connection("blocks.0.attn.proj.weight", (0, 8), ("attn", 0), ("block", 0)),
        Connection("blocks.0.linear2.weight", (0, 8), ("mlp", 0), ("block", 0)),
        Connection("blocks.1.attn.qkv.weight", (16, 24), ("block", 0), ("attn", 1)),
        Connection("blocks.1.attn.proj.weight", (0, 8), ("attn", 1), ("block", 1)),
        Connection("blocks.1.linear1.weight", (0, 16), ("block", 0), ("mlp", 1)),
        Connection("blocks.1.linear2.weight", (0, 8), ("mlp", 1), ("block", 1)),
        Connection("head.weight", (0, 3), ("block", 1), None),
    ]
    assert connections(TRANSFORMER, "afcc") == []


def test_a_hybrid_is_shared_by_both_methods() -> None:
    assert connections(HYBRID, "afcc") == []
    assert [connection.parameter for connection in connections(LATE_HYBRID, "afcc")] == ["blocks.1.layers.0.weight"]
    assert connections(LATE_HYBRID, "andc") == [
        Connection("blocks.2.attn.qkv.weight", (16, 24), ("block", 1), ("attn", 2)),
        Connection("blocks.2.attn.proj.weight", (0, 8), ("attn", 2), ("block", 2)),
        Connection("blocks.2.linear1.weight", (0, 16), ("block", 1), ("mlp", 2)),
        Connection("blocks.2.linear2.weight", (0, 8), ("mlp", 2), ("block", 2)),
        Connection("head.weight", (0, 3), ("block", 2), None),
    ]


def test_unknown_method_is_refused() -> None:
    with pytest.raises(ValueError, match="method must be afcc or andc, but got 'magnitude'"):
        connections(TRANSFORMER, "magnitude")  # type: ignore[arg-type]


@every_network
def test_row_is_what_a_target_unit_reads(config: ModelConfig, tiny: Dataset) -> None:
    """By autograd, without the layout written down: a target unit depends on its own row and on no other."""
    model = create_model(config).train()  # batch norm by batch statistics: no filter is below zero everywhere
    images = normalize(tiny.train.images, tiny.mean, tiny.std)
    checked = 0
    for connection in _all_connections(config):
        if connection.parameter.endswith("attn.proj.weight"):
            continue  # on its way to the block's output it goes through the MLP too, which mixes the channels
        weight = model.get_parameter(connection.parameter)
        for unit in (0, 2):
            if connection.target is None:
                tapped = model(images)
            else:
                activations: list[Tensor] = []
                with _tap(model, connection.target, activations):
                    model(images)
                tapped = activations[0]
            (gradient,) = torch.autograd.grad(tapped[..., unit].square().sum(), weight)
            rows = gradient[slice(*connection.rows)].flatten(1).any(dim=1)
            assert rows.nonzero().tolist() == [[unit]], connection
            checked += 1
    assert checked >= 4


@every_network
def test_column_is_what_reads_a_source_unit(config: ModelConfig, tiny: Dataset) -> None:
    """By autograd: the weights that read a unit that says nothing have no gradient."""
    model = create_model(config).train()  # batch norm by batch statistics: no filter is below zero everywhere
    images = normalize(tiny.train.images, tiny.mean, tiny.std)
    checked = 0
    for connection in _all_connections(config):
        if connection.source[0] == "block" and "layers" not in connection.parameter:
            continue  # a norm lies in between: a unit that says nothing does not leave as nothing
        weight = model.get_parameter(connection.parameter)
        with _tap(model, connection.source, [], silence=3):
            logits = model(images)
        (gradient,) = torch.autograd.grad(logits.square().sum(), weight)
        columns = gradient[slice(*connection.rows)].transpose(0, 1).flatten(1).any(dim=1)
        assert not columns[3], connection
        assert columns.sum() > 1, connection
        checked += 1
    assert checked >= 1


@contextmanager
def _tap(model: CCT, layer: LayerKey, out: list[Tensor], *, silence: int | None = None) -> Iterator[None]:
    """Within the block, forward passes append a layer's activations (B, N, units) to `out`, one unit set to zero."""

    def note(tokens: Tensor) -> None:
        if silence is not None:
            tokens.detach()[..., silence] = 0.0
        out.append(tokens)

    tap, index = layer
    block: Any = model.blocks[index]
    if tap == "block":
        handle = block.register_forward_hook(
            lambda _, __, output: note(output[0] if isinstance(output, tuple) else output)
        )
    else:
        reader = block.attn.proj if tap == "attn" else block.linear2
        handle = reader.register_forward_pre_hook(lambda _, inputs: note(inputs[0]))
    yield
    handle.remove()


# Masks


@every_network
def test_masks_keep_what_shares_a_label_and_nothing_else(config: ModelConfig) -> None:
    labels = _random_labels(config)
    found = _all_connections(config)
    masks = connection_masks(config, found, labels)
    parameters = dict(create_model(config).named_parameters())
    assert masks.keys() == {connection.parameter for connection in found}
    for connection in found:
        mask = masks[connection.parameter]
        assert mask.dtype == torch.bool
        assert mask.shape == parameters[connection.parameter].shape
        start, stop = connection.rows
        assert mask[:start].all()
        assert mask[stop:].all()
        both = set()
        for row, kernels in enumerate(mask[start:stop]):
            target = {row} if connection.target is None else _label_set(labels[connection.target][row])
            for column, kernel in enumerate(kernels):
                expected = bool(target & _label_set(labels[connection.source][column]))
                assert set(kernel.flatten().tolist()) == {expected}, (connection, row, column)
                both.add(expected)
        assert both == {True, False}


def _label_set(labels: Tensor) -> set[int]:
    return {label for label, stands_for in enumerate(labels.tolist()) if stands_for}


@every_network
def test_controls_have_the_sparsity_of_each_connection_and_other_weights(config: ModelConfig) -> None:
    found, labels = _all_connections(config), _random_labels(config)
    masks = connection_masks(config, found, labels)
    controls = [random_masks(config, found, labels, torch.Generator().manual_seed(seed)) for seed in (0, 1, 2, 0)]
    assert_same_bits(controls[0], controls[-1])
    for connection in found:
        name, (start, stop) = connection.parameter, connection.rows
        for control in controls:
            assert control[name].shape == masks[name].shape
            assert control[name].sum() == masks[name].sum()
            assert control[name][:start].all()
            assert control[name][stop:].all()
            per_kernel = control[name][start:stop].flatten(2) if control[name].ndim == 4 else None
            assert per_kernel is None or torch.equal(per_kernel.any(dim=2), per_kernel.all(dim=2))
            assert kept_fraction(control, [connection]) == kept_fraction(masks, [connection])
        assert sum(torch.equal(control[name], masks[name]) for control in controls) <= 1
        assert not torch.equal(controls[0][name], controls[1][name])


def test_controls_are_random_clusters_of_the_same_size() -> None:
    # Units of all labels connect to every unit of any, and units of none to nothing, whatever the permutation; with
    # equal counts nothing else is left to choose, so the control of such labels is the true mask.
    config = tiny_model(num_conv_blocks=2, embed_dim=6)
    labels = {("block", block): torch.zeros(6, 3, dtype=torch.bool) for block in range(2)}
    labels["block", 0][:2] = True
    labels["block", 1][1:4, 1] = True
    found = connections(config, "afcc")[:1]
    masks = connection_masks(config, found, labels)
    assert masks["blocks.1.layers.0.weight"].sum() == 2 * 3 * 9
    assert_same_bits(masks, random_masks(config, found, labels, torch.Generator().manual_seed(1)))


def test_control_of_the_classifier_keeps_the_number_of_labels_of_each_unit() -> None:
    config, labels = NETWORKS["conv3x3"], _random_labels(NETWORKS["conv3x3"])
    control = random_masks(config, connections(config, "afcc"), labels, torch.Generator().manual_seed(0))
    assert torch.equal(control["head.weight"].sum(dim=0), labels["block", 1].sum(dim=1))


@pytest.mark.parametrize("value", [True, False])
def test_labels_of_all_units_or_of_none(value: bool) -> None:
    labels = {key: torch.full_like(units, value) for key, units in _random_labels(TRANSFORMER).items()}
    found = connections(TRANSFORMER, "andc")
    for masks in (
        connection_masks(TRANSFORMER, found, labels),
        random_masks(TRANSFORMER, found, labels, torch.Generator().manual_seed(0)),
    ):
        assert kept_fraction(masks, found) == value
        assert masks["blocks.1.attn.qkv.weight"][:16].all()


def test_fractions_counted_by_hand() -> None:
    config = tiny_model(num_conv_blocks=2)
    found = connections(config, "afcc")
    labels = {("block", block): torch.zeros(8, 3, dtype=torch.bool) for block in range(2)}
    labels["block", 0][0, 1] = labels["block", 1][2, 1] = labels["block", 1][3, 1] = True
    masks = connection_masks(config, found, labels)
    # Two kernels of 64 and two read-out weights of 24 are kept.
    assert kept_fraction(masks, found[:1]) == 2 / 64
    assert kept_fraction(masks, found[1:]) == 2 / 24
    assert kept_fraction(masks, found) == (2 * 9 + 2) / (64 * 9 + 24)
    model = create_model(config)
    total = sum(parameter.numel() for parameter in model.parameters())
    assert kept_of_model(model, masks) == (total - 62 * 9 - 22) / total
    apply_masks(model, masks)
    assert kept_of_model(model, masks) == (total - 62 * 9 - 22) / total


def test_labels_that_do_not_fit_are_refused() -> None:
    found, labels = connections(TRANSFORMER, "andc"), _random_labels(TRANSFORMER)
    generator = torch.Generator().manual_seed(0)
    bad: list[tuple[dict[LayerKey, Tensor], str]] = [
        (
            {key: units for key, units in labels.items() if key != ("mlp", 1)},
            r"labels must cover all connected layers, but have none for \('mlp', 1\)",
        ),
        (
            {**labels, ("mlp", 0): labels["mlp", 0][:8]},
            r"\('mlp', 0\) must be bool of shape .* = \(16, 3\), .*\(8, 3\)",
        ),
        ({**labels, ("attn", 1): labels["attn", 1].float()}, r"\('attn', 1\) must be bool .* got torch.float32"),
        ({**labels, ("block", 0): labels["block", 0][:, :2]}, r"\('block', 0\) .* = \(8, 3\), .*\(8, 2\)"),
    ]
    for wrong, message in bad:
        for make in (
            lambda wrong=wrong: connection_masks(TRANSFORMER, found, wrong),
            lambda wrong=wrong: random_masks(TRANSFORMER, found, wrong, generator),
        ):
            with pytest.raises(ValueError, match=message) as raised:
                make()
            assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "connection",
    [
        Connection("blocks.1.layers.3.weight", (0, 8), ("block", 0), ("block", 1)),
        Connection("head.weight", (0, 4), ("block", 0), None),
        Connection("blocks.1.linear1.weight", (0, 8), ("block", 0), ("mlp", 1)),
        Connection("blocks.1.linear1.weight", (6, 18), ("block", 0), ("mlp", 1)),
    ],
    ids=str,
)
def test_connections_of_another_network_are_refused(connection: Connection) -> None:
    with pytest.raises(ValueError, match="connections must be of this network, but Connection"):
        connection_masks(HYBRID, [connection], _random_labels(HYBRID))


def test_fraction_needs_connections_and_their_masks() -> None:
    with pytest.raises(ValueError, match="connections must not be empty"):
        kept_fraction({}, [])
    with pytest.raises(ValueError, match=r"masks must cover all connections, but have none for blocks\.0\.attn\.proj"):
        kept_fraction({}, connections(TRANSFORMER, "andc"))


# Masked networks


@every_network
def test_masked_network_computes_with_zeros_and_becomes_a_plain_one(config: ModelConfig, tiny: Dataset) -> None:
    model = create_model(config).eval()
    masks = _masks(config)
    by_hand = copy.deepcopy(model)
    with torch.no_grad():
        for name, mask in masks.items():
            by_hand.get_parameter(name)[~mask] = 0.0
    masked = copy.deepcopy(model)
    apply_masks(masked, masks)
    before = torch.get_rng_state()
    plain = remove_masks(masked)
    assert torch.equal(torch.get_rng_state(), before)
    images = normalize(tiny.val.images, tiny.mean, tiny.std)
    with torch.inference_mode():
        expected = by_hand(images)
        assert not torch.equal(model(images), expected)
        assert torch.equal(masked(images), expected)
        assert torch.equal(plain(images), expected)
    assert list(plain.state_dict()) == list(model.state_dict())
    assert_same_bits(dict(plain.state_dict()), dict(by_hand.state_dict()))
    assert [(name, value.requires_grad, value.stride()) for name, value in plain.named_parameters()] == [
        (name, value.requires_grad, value.stride()) for name, value in model.named_parameters()
    ]
    assert type(plain) is CCT
    assert not plain.training
    for name in masks:  # convolutions keep their channels-last kernels
        module, _, leaf = name.rpartition(".")
        assert getattr(masked.get_submodule(module), leaf).stride() == model.get_parameter(name).stride()
    # A copy: the masked network goes on by itself.
    with torch.no_grad():
        plain.head.weight.fill_(1.0)
        assert torch.equal(masked(images), expected)


def test_removing_no_masks_copies_the_network(tiny: Dataset) -> None:
    for config in (HYBRID, tiny_model(positional_embedding="sine"), tiny_model(positional_embedding="none")):
        model = create_model(config)
        plain = remove_masks(model)
        assert plain is not model
        assert plain.training
        assert_same_bits(dict(plain.state_dict()), dict(model.state_dict()))


def test_masks_that_do_not_fit_are_refused_and_change_nothing() -> None:
    model = create_model(HYBRID)
    masks = _masks(HYBRID)
    for name, mask, message in (
        ("blocks.9.linear1.weight", torch.ones(8, 8, dtype=torch.bool), r"has no blocks\.9\.linear1\.weight"),
        ("norm.weight", torch.ones(9, dtype=torch.bool), r"norm\.weight must be bool of shape \(8,\), .*\(9,\)"),
        ("norm.weight", torch.ones(8), r"norm\.weight must be bool .* torch\.float32"),
    ):
        keys = list(model.state_dict())
        with pytest.raises(ValueError, match=message):
            apply_masks(model, {**masks, name: mask})
        assert list(model.state_dict()) == keys
    apply_masks(model, masks)
    with pytest.raises(ValueError, match="masks must be of plain parameters of the network"):
        apply_masks(model, masks)


# Retraining


@pytest.mark.parametrize(
    "recipe",
    [
        {"optimizer": "adamw", "weight_decay": 0.3, "learning_rate": 0.01},
        {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.01, "learning_rate": 0.1},
        {"ema_decay": 0.8, "grad_clip_norm": 1.0, "learning_rate": 0.01, "precision": "bf16"},
    ],
    ids=["adamw", "sgd", "ema"],
)
@pytest.mark.parametrize("network", ["transformer", "late_hybrid", "conv3x3", "depthwise"])
def test_masked_weights_stay_zero_and_the_others_learn(network: str, recipe: dict[str, Any], tiny: Dataset) -> None:
    config = NETWORKS[network]
    model = create_model(config)
    before = copy.deepcopy(model.state_dict())
    masks = _masks(config, density=0.5)
    steps = []

    def check_steps_of_the_second_epoch(state: TrainState, metrics: EpochMetrics) -> None:
        def check(*_: Any) -> None:
            plain = remove_masks(state.model)
            assert not any(plain.get_parameter(name)[~mask].any() for name, mask in masks.items())
            steps.append(metrics.epoch)

        if metrics.epoch == 1:
            state.optimizer.register_step_post_hook(check)

    recipe = {"epochs": 2, **recipe}
    result = retrain(
        model, masks, tiny_recipe(**recipe), tiny, device=CPU, on_epoch_end=check_steps_of_the_second_epoch
    )
    assert len(steps) == 3
    assert_same_bits(dict(model.state_dict()), dict(before))
    after = result.model.state_dict()
    assert list(after) == list(before)
    for name, mask in masks.items():
        assert torch.equal(after[name][~mask], torch.zeros(int((~mask).sum())))
        assert (after[name] != before[name])[mask].float().mean() > 0.9, name
    assert [name for name in after if torch.equal(after[name], before[name])] == ["pool.attention.bias"]


def test_retraining_recovers_and_reports_both_accuracies(tiny: Dataset, tmp_path: Path) -> None:
    config = NETWORKS["conv3x3"]
    model = train(config, tiny_recipe(epochs=15, learning_rate=0.02), tiny, device=CPU).model
    masks = _masks(config)
    recipe = tiny_recipe(epochs=10, learning_rate=0.02)
    result = retrain(model, masks, recipe, tiny, device=CPU)
    masked = copy.deepcopy(model)
    apply_masks(masked, masks)
    assert result.masked_val_accuracy == evaluate(masked, tiny.val, tiny, device=CPU).accuracy
    assert result.val_accuracy == evaluate(result.model, tiny.val, tiny, device=CPU).accuracy
    assert result.masked_val_accuracy < 0.9 < result.val_accuracy
    save_model(result.model, tmp_path, dataset=tiny, train_config=recipe)
    assert_same_bits(dict(load_model(tmp_path).state_dict()), dict(result.model.state_dict()))


@every_network
def test_masks_that_keep_everything_train_as_no_masks_bit_by_bit(config: ModelConfig, tiny: Dataset) -> None:
    # Not with grad_clip_norm: masked parameters come later in the model's order, and norms of another order of summands
    # differ in their last bit.
    recipe = tiny_recipe(epochs=2, learning_rate=0.01, ema_decay=0.9)
    model = create_model(config)
    masks = {name: torch.ones_like(mask) for name, mask in _masks(config).items()}
    plain = train(config, recipe, tiny, device=CPU, model=copy.deepcopy(model))
    result = retrain(model, masks, recipe, tiny, device=CPU)
    assert_same_bits(dict(result.model.state_dict()), dict(plain.evaluated_model.state_dict()))


def test_decay_reaches_the_same_parameters_with_masks(tiny: Dataset) -> None:
    shapes = []
    for masked in (False, True):
        model = create_model(HYBRID)
        if masked:
            apply_masks(model, _masks(HYBRID))
        groups = TrainState(HYBRID, tiny_recipe(), tiny, device=CPU, model=model).optimizer.param_groups
        shapes.append([sorted(tuple(parameter.shape) for parameter in group["params"]) for group in groups])
    assert shapes[0] == shapes[1]


def test_masked_run_goes_on_from_its_checkpoint_with_its_masks(tiny: Dataset, tmp_path: Path) -> None:
    recipe = tiny_recipe(epochs=2, learning_rate=0.01, ema_decay=0.9)
    masks = _masks(LATE_HYBRID)
    checkpoint = tmp_path / "run.pt"

    def masked(kept: dict[str, Tensor]) -> CCT:
        model = create_model(LATE_HYBRID)
        apply_masks(model, kept)
        return model

    def save_first(state: TrainState, metrics: EpochMetrics) -> None:
        if metrics.epoch == 1:
            state.save(checkpoint)

    whole = train(LATE_HYBRID, recipe, tiny, device=CPU, model=masked(masks), on_epoch_end=save_first)
    everything = {name: torch.ones_like(mask) for name, mask in masks.items()}
    resumed = train(LATE_HYBRID, recipe, tiny, device=CPU, model=masked(everything), resume_from=checkpoint)
    assert without_timings(resumed.history) == without_timings(whole.history)
    assert_same_bits(dict(resumed.model.state_dict()), dict(whole.model.state_dict()))
    assert_same_bits(dict(resumed.evaluated_model.state_dict()), dict(whole.evaluated_model.state_dict()))


# Training that starts from a given model


def test_training_takes_the_given_model_over(tiny: Dataset) -> None:
    model = create_model(HYBRID).eval()
    start = copy.deepcopy(model.state_dict())
    trainer = Trainer(HYBRID, tiny_recipe(), tiny, device=CPU, model=model)
    assert trainer.state.model is model
    assert_same_bits(dict(trainer.state.model.state_dict()), dict(start))
    trainer.run_epoch()
    assert not torch.equal(model.state_dict()["head.weight"], start["head.weight"])


def test_run_from_its_own_initial_weights_is_the_run_without_a_model(tiny: Dataset) -> None:
    config = tiny_model(drop_path=0.3, attn_drop=0.3, depth=3, num_conv_blocks=1)
    recipe = tiny_recipe(epochs=2, seed=3)
    initial = TrainState(config, recipe, tiny, device=CPU).model
    given = train(config, recipe, tiny, device=CPU, model=initial)
    fresh = train(config, recipe, tiny, device=CPU)
    assert without_timings(given.history) == without_timings(fresh.history)
    assert_same_bits(dict(given.model.state_dict()), dict(fresh.model.state_dict()))


def test_model_of_another_architecture_is_refused(tiny: Dataset) -> None:
    model = create_model(tiny_model(num_heads=4, drop_path=0.2))
    message = "model must be of model_config, but differs: num_heads must be 2, not 4, drop_path must be 0.0, not 0.2"
    with pytest.raises(ValueError, match=message):
        train(tiny_model(), tiny_recipe(), tiny, device=CPU, model=model)
