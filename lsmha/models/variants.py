"""The published CCT variants by name, and the one way to make a model."""

from __future__ import annotations

from typing import Any

from lsmha.config import ModelConfig
from lsmha.models.cct import CCT

# depth, num_heads, mlp_ratio, embed_dim of the published sizes (Hassani et al., arXiv:2104.05704, published code)
_SIZES = {
    2: (2, 1.0, 128),
    4: (2, 1.0, 128),
    6: (4, 2.0, 256),
    7: (4, 2.0, 256),
    14: (6, 3.0, 384),
}


def _variant(depth: int, kernel_size: int, convs: int, img_size: int, num_classes: int, **rest: Any) -> ModelConfig:
    num_heads, mlp_ratio, embed_dim = _SIZES[depth]
    return ModelConfig(
        img_size=img_size,
        num_classes=num_classes,
        embed_dim=embed_dim,
        depth=depth,
        num_heads=num_heads,
        mlp_ratio=mlp_ratio,
        kernel_size=kernel_size,
        num_tokenizer_convs=convs,
        **rest,
    )


def _published_variants() -> dict[str, ModelConfig]:
    variants = {}
    for depth, convs in ((2, 2), (4, 2), (6, 1), (6, 2), (7, 1), (7, 2)):
        variants[f"cct_{depth}_3x{convs}_32"] = _variant(depth, 3, convs, 32, 10)
    variants["cct_7_3x1_32_c100"] = _variant(7, 3, 1, 32, 100)
    variants["cct_7_7x2_224"] = _variant(7, 7, 2, 224, 102)
    sine = {"positional_embedding": "sine"}
    for name in list(variants):
        stem = name.removesuffix("_c100")
        suffix = "_sine_c100" if name.endswith("_c100") else "_sine"
        variants[stem + suffix] = variants[name].model_copy(update=sine)
    variants["cct_14_7x2_224"] = _variant(14, 7, 2, 224, 1000)
    variants["cct_14_7x2_384"] = _variant(14, 7, 2, 384, 1000)
    variants["cct_14_7x2_384_fl"] = _variant(14, 7, 2, 384, 102)
    return variants


VARIANTS: dict[str, ModelConfig] = _published_variants()
"""Published variants; names read cct_<depth>_<kernel>x<convs>_<img_size>[_sine][_c100]."""


def create_model(model: str | ModelConfig, **overrides: Any) -> CCT:
    """A freshly initialized model from a published name or a configuration, with fields replaced by `overrides`.

    Raises:
        ValueError: The name is not in `VARIANTS`, or the overrides make no valid `ModelConfig`.

    Example:
        >>> create_model("cct_2_3x2_32", num_heads=64).config.head_dim
        2
    """
    if isinstance(model, str):
        if model not in VARIANTS:
            raise ValueError(f"model must be one of {', '.join(sorted(VARIANTS))}, but got {model!r}")
        model = VARIANTS[model]
    if overrides:
        model = ModelConfig.model_validate({**model.model_dump(), **overrides})
    return CCT(model)
