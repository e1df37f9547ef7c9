"""Trained models on disk: `model.safetensors` beside the `config.json` that says how to build and feed them."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import load_file, save_file

from lsmha.atomic import atomic_path, atomic_write_text
from lsmha.config import ModelConfig, TrainConfig
from lsmha.data import Dataset
from lsmha.models import CCT


def save_model(model: CCT, folder: Path, *, dataset: Dataset, train_config: TrainConfig) -> None:
    """Write weights and configuration into `folder`, each file atomically."""
    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    with atomic_path(folder / "model.safetensors") as temporary:
        save_file(weights, temporary)
    config = {
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
    atomic_write_text(folder / "config.json", json.dumps(config, indent=2) + "\n")


def load_model(folder: Path) -> CCT:
    """The model that `save_model` wrote, in eval mode, on the CPU.

    Raises:
        OSError: A file is missing.
        ValueError: The weights do not fit the configuration.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model = CCT(ModelConfig.model_validate(config["model"]))
    try:
        model.load_state_dict(load_file(folder / "model.safetensors"))
    except RuntimeError as error:
        raise ValueError(f"{folder}/model.safetensors does not fit config.json: {error}") from None
    return model.eval()
