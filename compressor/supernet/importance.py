"""Importance of heads and neurons, first-order Taylor, as DynaBERT ranks them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from compressor.supernet.supernetwork import SuperNetwork

Reduction = Literal["sum_abs", "abs_sum", "reference"]


@dataclass(frozen=True)
class Importance:
    """Scores of every layer: heads [layers, H] and neurons [layers, F], larger is more important."""

    heads: Tensor
    neurons: Tensor


def importance(
    supernet: SuperNetwork,
    batches: Iterable[Any],
    loss: Callable[[Any, Any], Tensor],
    reduction: Reduction = "sum_abs",
) -> Importance:
    """Score heads by |∂L/∂ξ| of a gate ξ=1 on their attention, neurons by |Σ weight·gradient|.

    A gate on a head scales its columns of the output projection, hence ∂L/∂ξ = Σ W·∂L/∂W over these columns:
    no gate is needed. A neuron's score is |Σ w₁g₁ + b₁g| of the weights into it plus |Σ w₂g₂| of those out of it
    (DynaBERT, Algorithm 1 and Huawei's code).

    Args:
        batches: of a slice of the training data; what the final figures are reported on must not be ranked on.
        loss: of the model and a batch, a scalar. The model is put into eval mode, as in the reference code.
        reduction: over batches. `sum_abs` Σ|g_b| with gradients zeroed for each batch (Michel et al.);
            `abs_sum` |Σ g_b| (the paper's Algorithm 1); `reference` Σ_b |Σ_{r≤b} g_r|, for Huawei's code
            never zeroes the gradient, so that early batches weigh most.
    """
    supernet.train(False)
    running: list[Tensor] | None = None
    total: list[Tensor] | None = None
    for batch in batches:
        supernet.model.zero_grad()
        loss(supernet.model, batch).backward()
        signed = _signed_scores(supernet)
        running = signed if running is None else [a + b for a, b in zip(running, signed, strict=True)]
        step = running if reduction == "reference" else signed
        total = [a.abs() if total is None else t + a.abs() for a, t in zip(step, total or step, strict=True)]
    supernet.model.zero_grad()
    if running is None or total is None:
        raise ValueError("importance needs at least one batch")
    heads, inward, outward = [x.abs() for x in running] if reduction == "abs_sum" else total
    return Importance(heads, inward + outward)


@torch.no_grad()
def _signed_scores(supernet: SuperNetwork) -> list[Tensor]:
    """Σ weight·gradient of each head [layers, H], into [layers, F] and out of [layers, F] each neuron."""
    table, head_rows = supernet.architecture, supernet.dimensions.head_rows
    layers = supernet.model.base_model.get_submodule(table.layers)
    heads, inward, outward = [], [], []
    for layer in layers:
        heads.append(_sum(_columns, layer, table.head_columns).view(-1, head_rows).sum(1))
        inward.append(_sum(_rows, layer, table.neuron_rows))
        outward.append(_sum(_columns, layer, table.neuron_columns))
    return [torch.stack(scores) for scores in (heads, inward, outward)]


def _sum(score: Callable[[Any], Tensor], layer: nn.Module, names: tuple[str, ...]) -> Tensor:
    """A score summed over the matrices that it concerns."""
    return torch.stack([score(layer.get_submodule(name)) for name in names]).sum(0)


def _rows(linear: Any) -> Tensor:
    return (linear.weight * linear.weight.grad).sum(1) + linear.bias * linear.bias.grad


def _columns(linear: Any) -> Tensor:
    return (linear.weight * linear.weight.grad).sum(0)
