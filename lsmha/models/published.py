"""Published Compact-Transformers weights (github.com/SHI-Labs/Compact-Transformers) in this project's models."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from lsmha.config import ModelConfig
from lsmha.errors import ConfigurationError
from lsmha.models.cct import CCT
from lsmha.models.tokenizer import sine_embedding
from lsmha.progress import OnNote, ignored

# published key -> ours, applied in order
_RENAMED = (
    (r"^classifier\.positional_emb$", "positional_embedding.weight"),
    (r"^classifier\.attention_pool\.", "pool.attention."),
    (r"^classifier\.fc\.", "head."),
    (r"^classifier\.norm\.", "norm."),
    (r"^classifier\.(blocks\.\d+\.)self_attn\.", r"\1attn."),
    (r"^classifier\.(blocks\.\d+\.)", r"\1"),
)


_FIRST = "tokenizer.conv_layers.0.0.weight"
"""A weight that every published CCT has."""


def from_compact_transformers(
    state_dict: Mapping[str, Tensor], *, num_heads: int, img_size: int, on_note: OnNote = ignored
) -> CCT:
    """A model in eval mode with published weights; all that the shapes tell is inferred from them.

    The head count cannot be: the fused qkv has the same shape for every one. Dropout rates are not stored either and
    take the published defaults.

    Args:
        state_dict: As saved by the published code, read with `torch.load(path, weights_only=True)`; in half precision
            or behind a prefix, too (`module.` of DDP, `_orig_mod.` of compile, `model.` of Lightning, or all of them).
        num_heads: Attention heads of the published model.
        img_size: Image size it was trained on, in pixels.
        on_note: Told what else the state dict holds and is left out.

    Raises:
        ConfigurationError: A key is missing or unknown, there is more than one network, shapes do not fit, a weight is
            not finite, or num_heads does not divide the width.
    """
    renamed = {_rename(key): value for key, value in _without_prefix(state_dict, on_note).items()}
    config = _infer_config(renamed, num_heads=num_heads, img_size=img_size)
    for key, value in renamed.items():
        if not torch.isfinite(value).all():
            raise ConfigurationError(f"state_dict must hold finite weights, but {key} has NaN or infinite ones")
    model = CCT(config)
    try:
        model.load_state_dict(renamed)
    except RuntimeError as error:
        detail = " ".join(str(error).split())
        raise ConfigurationError(f"state_dict does not fit a CCT of img_size={img_size}: {detail}") from error
    return model.eval()


def _without_prefix(state_dict: Mapping[str, Tensor], on_note: OnNote) -> dict[str, Tensor]:
    """The weights of the one network, by the names that it has for them."""
    prefixes = [key.removesuffix(_FIRST) for key in state_dict if key.endswith(_FIRST)]
    if len(prefixes) > 1:
        raise ConfigurationError(f"state_dict must be of one network, but has {' and '.join(prefixes)}")
    prefix = prefixes[0] if prefixes else ""
    if others := [key for key in state_dict if not key.startswith(prefix)]:
        on_note(f"of the state_dict, {len(others)} tensors outside of {prefix!r} are left out: {others[0]}, ...")
    return {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}


def _rename(key: str) -> str:
    for pattern, replacement in _RENAMED:
        key = re.sub(pattern, replacement, key)
    return key


def _is_sine(embedding: Tensor) -> bool:
    if embedding.ndim != 3 or embedding.shape[0] != 1:
        return False
    exact = embedding.dtype in (torch.float32, torch.float64)
    return torch.allclose(embedding.cpu().float(), sine_embedding(*embedding.shape[1:]), atol=1e-4 if exact else 4e-3)


def _infer_config(weights: Mapping[str, Tensor], *, num_heads: int, img_size: int) -> ModelConfig:
    tokenizer_keys = sorted(key for key in weights if re.fullmatch(r"tokenizer\.conv_layers\.\d+\.0\.weight", key))
    depth = len({key.split(".")[1] for key in weights if key.startswith("blocks.")})
    needed = (_FIRST, "norm.weight", "head.weight", "blocks.0.linear1.weight")
    missing = [key for key in needed if key not in weights]
    if missing:
        raise ConfigurationError(f"state_dict is not of a Compact-Transformers CCT: no {missing[0]}")
    for key, dimensions in ((tokenizer_keys[0], 4), (tokenizer_keys[-1], 4), (needed[2], 2), (needed[3], 2)):
        if weights[key].ndim != dimensions or 0 in weights[key].shape:
            shape = tuple(weights[key].shape)
            raise ConfigurationError(f"state_dict: {key} must have {dimensions} dimensions, but its shape is {shape}")
    first, last = weights[tokenizer_keys[0]], weights[tokenizer_keys[-1]]
    embed_dim = last.shape[0]
    embedding = weights.get("positional_embedding.weight")
    positional_embedding: Literal["learnable", "sine", "none"]
    if embedding is None:
        positional_embedding = "none"
    elif _is_sine(embedding):
        positional_embedding = "sine"
    else:
        positional_embedding = "learnable"
    return ModelConfig(
        img_size=img_size,
        in_channels=first.shape[1],
        num_classes=weights["head.weight"].shape[0],
        embed_dim=embed_dim,
        depth=depth,
        num_heads=num_heads,
        mlp_ratio=weights["blocks.0.linear1.weight"].shape[0] / embed_dim,
        kernel_size=first.shape[-1],
        num_tokenizer_convs=len(tokenizer_keys),
        tokenizer_dim=first.shape[0] if len(tokenizer_keys) > 1 else ModelConfig.model_fields["tokenizer_dim"].default,
        positional_embedding=positional_embedding,
    )
