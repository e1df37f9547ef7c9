"""Read-outs: a pooling over tokens and one bias-free layer from the units of a tap to the labels.

Shapes: B images, N tokens, F units of the tap, T token places that pooling leaves (1; N where it flattens), K labels.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from lsmha.analysis.taps import Tap, tap_width
from lsmha.config import ModelConfig, Pooling
from lsmha.shapes import Float


class ReadOut(nn.Module):
    """Pooling and a bias-free linear layer, so that the logits are the sum of what each unit says.

    The layer starts at U(+-1 / sqrt(fan_in)), as in the code published with arXiv:2501.12880.
    """

    def __init__(self, width: int, num_tokens: int, num_classes: int, pooling: Pooling) -> None:
        super().__init__()
        self.pooling = pooling
        self.num_places = num_tokens if pooling == "flatten" else 1
        # A bias of the scores would shift them all, which a softmax does not notice.
        self.scores = nn.Linear(width, 1, bias=False) if pooling == "sequence" else None
        self.fc = nn.Linear(self.num_places * width, num_classes, bias=False)

    def pool(self, tokens: Float[Tensor, "B N F"], *, groups: int = 1) -> Float[Tensor, "B T F"]:
        """Tokens to features.

        `groups` > 1 cuts the units into that many equal groups whose pooling weights come from the group alone, as
        though all others were silent. Only sequence pooling has weights that depend on the tokens.
        """
        if self.pooling == "flatten":
            return tokens
        if self.scores is None:
            return tokens.mean(dim=1, keepdim=True)
        if groups == 1:
            weights = self.scores(tokens).softmax(dim=1)
            return weights.transpose(1, 2) @ tokens
        grouped = tokens.unflatten(2, (groups, -1))
        scores = (grouped * self.scores.weight.view(groups, -1)).sum(dim=-1, keepdim=True)
        return (scores.softmax(dim=1) * grouped).sum(dim=1, keepdim=True).flatten(2)

    def classify(self, features: Float[Tensor, "B T F"]) -> Float[Tensor, "B K"]:
        """Features to logits."""
        return self.fc(features.flatten(1))

    def forward(self, tokens: Float[Tensor, "B N F"]) -> Float[Tensor, "B K"]:
        """Tokens to logits."""
        return self.classify(self.pool(tokens))

    @property
    def weight(self) -> Float[Tensor, "K T F"]:
        """Weights of the linear layer by label, token place and unit."""
        return self.fc.weight.unflatten(1, (self.num_places, -1))


def build_readouts(
    config: ModelConfig, taps: Iterable[Tap], pooling: Pooling, *, device: torch.device, seed: int
) -> dict[Tap, ReadOut]:
    """An untrained read-out for each tap; equal seeds give equal weights, whatever the device."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return {
            tap: ReadOut(tap_width(config, tap), config.num_tokens, config.num_classes, pooling).to(device)
            for tap in taps
        }
