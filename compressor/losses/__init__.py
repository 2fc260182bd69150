"""Distillation losses: pure functions over tensors.

Relations and `hidden_mse`: teacher and student states [B, L, n, d] and a mask [B, n] to a scalar.
`soft_cross_entropy` and `regression`: logits to a scalar. `objective` composes them.
"""

from compressor.losses.hidden import hidden_mse
from compressor.losses.logits import regression, soft_cross_entropy
from compressor.losses.relations import (
    layer_angle,
    layer_distance,
    layer_pair,
    word_angle,
    word_distance,
    word_pair,
)

__all__ = [
    "hidden_mse",
    "layer_angle",
    "layer_distance",
    "layer_pair",
    "regression",
    "soft_cross_entropy",
    "word_angle",
    "word_distance",
    "word_pair",
]
