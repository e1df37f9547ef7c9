"""Training of read-outs on a frozen network: all taps learn from the same forward passes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from lsmha.analysis.readouts import ReadOut, build_readouts
from lsmha.analysis.streaming import stream_taps
from lsmha.analysis.taps import Tap, watch_taps
from lsmha.config import ReadoutConfig
from lsmha.data import Augmentation, Dataset, LabeledImages, stratified_subset
from lsmha.errors import ConfigurationError
from lsmha.models import CCT
from lsmha.progress import OnProgress, no_progress

MAX_CACHED_BYTES = 8 * 1024**3
"""Pooled features that `lbfgs` may hold at a time."""


def fit_readouts(
    model: CCT,
    taps: Iterable[Tap],
    dataset: Dataset,
    config: ReadoutConfig,
    *,
    device: torch.device,
    seed: int = 0,
    on_progress: OnProgress = no_progress,
) -> dict[Tap, ReadOut]:
    """A read-out for each tap, trained on the training split while the network stays as it is, in eval mode.

    Raises:
        ConfigurationError: As for `check_fittable`, or solver `lbfgs` would have to hold too much.
    """
    check_fittable(dataset, config)
    train = dataset.train
    if config.max_train_images is not None and config.max_train_images < len(train):
        train = train.subset(stratified_subset(train.labels, config.max_train_images, seed=seed))
    readouts = build_readouts(model.config, taps, config.pooling, device=device, seed=seed)
    model.eval()
    solve = _solve_lbfgs if config.solver == "lbfgs" else _train_sgd
    solve(model, readouts, train, dataset, config, device=device, seed=seed, on_progress=on_progress)
    return {tap: readout.eval().requires_grad_(False) for tap, readout in readouts.items()}


def check_fittable(dataset: Dataset, config: ReadoutConfig) -> None:
    """Raise ValueError where the training images are too few for the settings, whatever the network."""
    images = min(len(dataset.train), config.max_train_images or len(dataset.train))
    if images < dataset.num_classes:
        raise ConfigurationError(
            f"readout.max_train_images: each of {dataset.num_classes} labels needs at least one image, but got {images}"
        )
    if config.solver == "sgd" and config.batch_size > images:
        raise ConfigurationError(
            f"readout.batch_size: at most the {images:,} training images are allowed, but got {config.batch_size}"
        )


def _solve_lbfgs(
    model: CCT,
    readouts: Mapping[Tap, ReadOut],
    train: LabeledImages,
    dataset: Dataset,
    config: ReadoutConfig,
    *,
    device: torch.device,
    seed: int,
    on_progress: OnProgress,
) -> None:
    size = sum(readout.fc.in_features for readout in readouts.values()) * len(train) * 4
    if size > MAX_CACHED_BYTES:
        raise ConfigurationError(
            f"readout: solver lbfgs may hold {MAX_CACHED_BYTES / 1024**3:.0f} GiB of pooled features, but pooling "
            f"{config.pooling} of {len(train):,} images gives {size / 1024**3:.1f} GiB; lower max_train_images, "
            "or use pooling mean or solver sgd"
        )
    features = {tap: torch.empty(len(train), readout.fc.in_features) for tap, readout in readouts.items()}
    done = 0
    for pooled, labels, _ in stream_taps(model, readouts, train, dataset, device=device):
        for tap, batch in pooled.items():
            features[tap][done : done + len(labels)] = batch.flatten(1)
        done += len(labels)
        on_progress("read-outs: features", done, len(train))
    labels = train.labels.to(device)
    for number, (tap, readout) in enumerate(readouts.items()):
        weight = minimize_cross_entropy(
            features.pop(tap).to(device),
            labels,
            dataset.num_classes,
            weight_decay=config.weight_decay,
            max_iterations=config.max_iterations,
        )
        with torch.no_grad():
            readout.fc.weight.copy_(weight)
        on_progress("read-outs: solving", number + 1, len(readouts))


def minimize_cross_entropy(
    features: Tensor, labels: Tensor, num_classes: int, *, weight_decay: float, max_iterations: int
) -> Tensor:
    """Weights (K, F) of the bias-free softmax regression on features (n, F) and labels (n,), by L-BFGS from zero.

    The loss is the mean cross-entropy plus weight_decay / 2 times the sum of squared weights. The search runs as though
    features had a root mean square of one, which leaves the minimum where it is and brings it nearer.
    """
    scale = torch.linalg.vector_norm(features, dim=0) / len(features) ** 0.5
    scale = torch.where(scale > 0, scale, 1)
    weight = torch.zeros(num_classes, features.shape[1], device=features.device, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight],
        max_iter=max_iterations,
        max_eval=2 * max_iterations,
        history_size=20,
        tolerance_grad=1e-6,
        tolerance_change=1e-10,
        line_search_fn="strong_wolfe",
    )

    def loss_and_gradient() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        unscaled = weight / scale
        loss = F.cross_entropy(F.linear(features, unscaled), labels) + 0.5 * weight_decay * unscaled.square().sum()
        loss.backward()
        return loss

    optimizer.step(loss_and_gradient)
    return (weight / scale).detach()


def _train_sgd(
    model: CCT,
    readouts: Mapping[Tap, ReadOut],
    train: LabeledImages,
    dataset: Dataset,
    config: ReadoutConfig,
    *,
    device: torch.device,
    seed: int,
    on_progress: OnProgress,
) -> None:
    parameters = [parameter for readout in readouts.values() for parameter in readout.parameters()]
    optimizer = torch.optim.SGD(
        parameters,
        lr=config.learning_rate,
        momentum=config.momentum,
        nesterov=config.momentum > 0,
        weight_decay=config.weight_decay,
    )
    augment = Augmentation(config.augment, dataset.mean, dataset.std, dataset.num_classes)
    order_generator = torch.Generator().manual_seed(seed)
    tokens: dict[Tap, Tensor] = {}
    with (
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        watch_taps(model, readouts, tokens.__setitem__),
    ):
        torch.manual_seed(seed)
        for epoch in range(config.epochs):
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * config.lr_decay**epoch
            order = torch.randperm(len(train), generator=order_generator)
            for batch in order[: len(train) // config.batch_size * config.batch_size].split(config.batch_size):
                labels = train.labels[batch].to(device)
                with torch.no_grad():
                    inputs, _ = augment(train.images[batch].to(device), labels)
                    model(inputs)
                # The read-outs share no weight: the gradient of the sum is each one's own.
                loss = torch.stack(
                    [F.cross_entropy(readout(tokens[tap]), labels) for tap, readout in readouts.items()]
                ).sum()
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
            on_progress("read-outs: sgd epochs", epoch + 1, config.epochs)
