"""Compact convolutional transformers with any number of heads and convolutional first blocks."""

from lsmha.models.cct import CCT, CCTOutput
from lsmha.models.cost import ModelCost, model_cost
from lsmha.models.published import from_compact_transformers
from lsmha.models.variants import VARIANTS, create_model

__all__ = ["CCT", "VARIANTS", "CCTOutput", "ModelCost", "create_model", "from_compact_transformers", "model_cost"]
