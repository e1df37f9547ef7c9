"""Trained models on disk: `model.safetensors` beside the `config.json` that says how to build and feed them, and logits
of held-out images, which committees and error analyses need."""

from __future__ import annotations

import json
from typing import Any, Literal, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from lsmha.config import ModelConfig, TrainConfig
from lsmha.data import Dataset, LabeledImages
from lsmha.errors import ConfigurationError, DamagedFileError
from lsmha.io.checksums import CHECKSUM_PLACEHOLDER, checked, read_checked, write_checked
from lsmha.io.paths import RunPath
from lsmha.legacy import of_today
from lsmha.models import CCT, from_compact_transformers
from lsmha.progress import OnNote, ignored
from lsmha.training.checkpoint_file import read_weights
from lsmha.training.evaluation import Evaluation, predict_logits, score_logits

HeldOut = Literal["val", "test"]
"""`val` logits are there to choose committee members by, `test` logits to report on."""


def save_model(model: CCT, folder: RunPath, *, dataset: Dataset, train_config: TrainConfig) -> None:
    """Write weights and configuration into `folder`, which is made, each file atomically.

    Raises:
        OSError: The storage is full, read-only or gone; what was saved before stays.
    """
    folder.mkdir(exist_ok=True)
    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    write_checked(folder / "model.safetensors", save(weights, metadata={"checksum": CHECKSUM_PLACEHOLDER}))
    config = {
        "checksum": CHECKSUM_PLACEHOLDER,
        "model": model.config.model_dump(mode="json"),
        "train": train_config.model_dump(mode="json"),
        "data": {
            "name": dataset.name,
            "class_names": list(dataset.class_names),
            "mean": list(dataset.mean),
            "std": list(dataset.std),
            "test_fingerprint": dataset.fingerprint,
        },
    }
    write_checked(folder / "config.json", (json.dumps(config, indent=2) + "\n").encode())


def load_model(folder: RunPath) -> CCT:
    """The model that `save_model` wrote, in eval mode, on the CPU.

    Raises:
        OSError: A file is missing.
        DamagedFileError: The weights are not those that were saved.
        ConfigurationError: The weights do not fit the configuration.
    """
    model = CCT(load_model_config(folder))
    path = folder / "model.safetensors"
    content = read_checked(path, required=False)
    try:
        model.load_state_dict(load(content))
    except SafetensorError as error:
        raise DamagedFileError(f"{path} is damaged: {error}") from None
    except RuntimeError as error:
        detail = " ".join(str(error).split())
        raise ConfigurationError(f"{path} does not fit config.json: {detail}") from None
    return model.eval()


def load_model_config(folder: RunPath) -> ModelConfig:
    """The architecture of a saved model, without its weights.

    Raises:
        OSError: There is no `config.json`.
        ValueError: It does not hold a valid architecture.
    """
    return ModelConfig.model_validate(_read_config(folder)["model"])


def load_train_config(folder: RunPath) -> TrainConfig:
    """The recipe that a saved model was trained by.

    Raises:
        OSError: There is no `config.json`.
        ValueError: It does not hold a valid recipe.
    """
    return TrainConfig.model_validate_json(json.dumps(_read_config(folder)["train"]))


def load_data_description(folder: RunPath) -> dict[str, Any]:
    """What a saved model was trained on: `name`, `class_names`, `mean`, `std`, `test_fingerprint`.

    Raises:
        OSError: There is no `config.json`.
        ConfigurationError: It does not say.
    """
    return _read_config(folder)["data"]


class StoredLogits(NamedTuple):
    """Logits (n, K), labels (n,), and the fingerprint of the test set that goes with them."""

    logits: Tensor
    labels: Tensor
    fingerprint: str


def logits_path(folder: RunPath, split: HeldOut) -> RunPath:
    """Where a model's folder keeps the logits of a split."""
    return folder / f"{split}_logits.safetensors"


def save_logits(model: CCT, folder: RunPath, split: HeldOut, *, dataset: Dataset, device: torch.device) -> Evaluation:
    """Predict a split once, keep logits and labels in `folder`, which is made, and return loss and accuracy.

    Raises:
        OSError: The storage is full, read-only or gone; what was saved before stays.
    """
    folder.mkdir(exist_ok=True)
    images: LabeledImages = getattr(dataset, split)
    logits = predict_logits(model, images.images, dataset, device=device)
    tensors = {"logits": logits.contiguous(), "labels": images.labels.clone()}
    metadata = {"fingerprint": dataset.fingerprint, "dataset": dataset.name, "checksum": CHECKSUM_PLACEHOLDER}
    write_checked(logits_path(folder, split), save(tensors, metadata=metadata))
    return score_logits(logits, images.labels)


def load_logits(folder: RunPath, split: HeldOut) -> StoredLogits:
    """What `save_logits` kept.

    Raises:
        OSError: There is no such file.
        DamagedFileError: It is damaged, or of another kind.
    """
    path = logits_path(folder, split)
    content = path.read_bytes()
    try:
        tensors = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])  # after its length
        stored = StoredLogits(tensors["logits"], tensors["labels"], header["__metadata__"]["fingerprint"])
    except (SafetensorError, KeyError, TypeError) as error:
        raise DamagedFileError(f"{path} does not hold logits: {' '.join(str(error).split())}") from None
    checked(content, path, required=False)
    return stored


def load_network(path: RunPath, *, img_size: int, num_heads: int | None = None, on_note: OnNote = ignored) -> CCT:
    """A trained network in eval mode, on the CPU: a folder that `save_model` wrote, or a file of weights of the
    published Compact-Transformers code, as training scripts save them.

    Args:
        path: The folder or file. Files are read without running any code that may be in them.
        img_size: Of the images it is for, in pixels; published weights do not tell.
        num_heads: Of published weights, which do not tell that either; elsewhere it must fit or be None.
        on_note: Told what was taken of a file that holds more than one network's weights.

    Raises:
        ConfigurationError: It cannot be read, or does not fit what the arguments say.
    """
    if not path.exists():
        raise ConfigurationError(f"{path} must exist")
    if not path.is_dir():
        if num_heads is None:
            raise ConfigurationError("num_heads must be given for published weights: their shapes do not tell it")
        weights = read_weights(path, on_note=on_note)
        return from_compact_transformers(weights, num_heads=num_heads, img_size=img_size, on_note=on_note)
    try:
        model = load_model(path)
    except (OSError, KeyError) as error:
        raise ConfigurationError(f"{path} must hold a saved model (config.json, model.safetensors): {error}") from None
    if num_heads not in (None, model.config.num_heads):
        raise ConfigurationError(f"num_heads must be {model.config.num_heads} for {path}, but got {num_heads}")
    return model


def _read_config(folder: RunPath) -> dict[str, Any]:
    content = of_today(json.loads(read_checked(folder / "config.json", required=False)))
    if not isinstance(content, dict) or not {"model", "train", "data"} <= content.keys():
        raise ConfigurationError(f"{folder}/config.json must hold model, train and data")
    return content
