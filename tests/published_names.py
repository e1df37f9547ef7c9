"""Names of weights in the published Compact-Transformers code."""

from __future__ import annotations

import re


def to_published_key(key: str) -> str:
    """Our name of a weight -> that of the published code and of vit-pytorch, which share theirs."""
    if key.startswith("tokenizer."):
        return key
    key = re.sub(r"^positional_embedding\.weight$", "positional_emb", key)
    key = re.sub(r"^pool\.attention\.", "attention_pool.", key)
    key = re.sub(r"^head\.", "fc.", key)
    key = re.sub(r"\.attn\.", ".self_attn.", key)
    return f"classifier.{key}"
