"""Importance of heads and neurons, as DynaBERT ranks them and as others do."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from compressor.supernet.supernetwork import SuperNetwork

Criterion = Literal["dynabert", "taylor", "magnitude"]
Reduction = Literal["sum_abs", "abs_sum", "reference"]


@dataclass(frozen=True)
class Importance:
    """Scores of every layer: heads [layers, H] and neurons [layers, F], larger is more important."""

    heads: Tensor
    neurons: Tensor


class Collector(ABC):
    """Gathers importance, batch after batch, from the gradients that stand at a model's parameters."""

    @abstractmethod
    def add(self, supernet: SuperNetwork) -> None:
        """Count the gradients of one batch in."""

    @abstractmethod
    def scores(self) -> Importance:
        """What all batches say together.

        Raises:
            ValueError: there was none.
        """


class GateGradients(Collector):
    """Heads by |∂L/∂ξ| of a gate ξ=1 on their attention, neurons by |Σ weight·gradient|: DynaBERT's criterion.

    A gate on a head scales its columns of the output projection, hence ∂L/∂ξ = Σ W·∂L/∂W over these columns:
    no gate is needed. A neuron's score is |Σ w₁g₁ + b₁g| of the weights into it plus |Σ w₂g₂| of those out of it
    (DynaBERT, Algorithm 1 and Huawei's code).

    Args:
        reduction: over batches. `sum_abs` Σ|g_b| with gradients zeroed for each batch (Michel et al.);
            `abs_sum` |Σ g_b| (the paper's Algorithm 1); `reference` Σ_b |Σ_{r≤b} g_r|, for Huawei's code
            never zeroes the gradient, so that early batches weigh most.
    """

    def __init__(self, reduction: Reduction = "sum_abs") -> None:
        self._reduction = reduction
        self._running: list[Tensor] = []
        self._total: list[Tensor] = []

    def add(self, supernet: SuperNetwork) -> None:
        """See `Collector`."""
        signed = _signed_scores(supernet)
        self._running = [a + b for a, b in zip(self._running, signed, strict=True)] if self._running else signed
        step = [score.abs() for score in (self._running if self._reduction == "reference" else signed)]
        self._total = [a + b for a, b in zip(self._total, step, strict=True)] if self._total else step

    def scores(self) -> Importance:
        """See `Collector`."""
        if not self._total:
            raise ValueError("importance needs at least one batch")
        found = [score.abs() for score in self._running] if self._reduction == "abs_sum" else self._total
        heads, inward, outward = found
        return Importance(heads, inward + outward)


class SquaredTaylor(Collector):
    """Heads and neurons by Σ (weight·gradient)² over the matrices that they have rows or columns in.

    First-order Taylor of Molchanov et al., "Importance Estimation for Neural Network Pruning" (CVPR 2019), equation 8.
    """

    def __init__(self) -> None:
        self._total: Importance | None = None

    @torch.no_grad()
    def add(self, supernet: SuperNetwork) -> None:
        """See `Collector`."""
        found = grouped(supernet, lambda name: _squared(supernet.model.base_model.get_submodule(name)))
        before = self._total
        self._total = (
            Importance(before.heads + found.heads, before.neurons + found.neurons) if before is not None else found
        )

    def scores(self) -> Importance:
        """See `Collector`."""
        if self._total is None:
            raise ValueError("importance needs at least one batch")
        return self._total


def importance(
    supernet: SuperNetwork, batches: Iterable[Any], loss: Callable[[Any, Any], Tensor], collector: Collector
) -> Importance:
    """Score heads and neurons by the gradients of some batches.

    Args:
        batches: of a slice of the training data; what the final figures are reported on must not be ranked on.
        loss: of the model and a batch, a scalar. The model is put into eval mode, as in the reference code.

    Raises:
        ValueError: there is no batch.
    """
    supernet.train(False)
    for batch in batches:
        supernet.model.zero_grad()
        loss(supernet.model, batch).backward()
        collector.add(supernet)
    supernet.model.zero_grad()
    return collector.scores()


@torch.no_grad()
def magnitude(supernet: SuperNetwork) -> Importance:
    """Heads and neurons by Σ |weight| over the matrices that they have rows or columns in; no data is looked at."""
    return grouped(supernet, lambda name: supernet.model.base_model.get_submodule(name).weight.abs())


def grouped(supernet: SuperNetwork, element: Callable[[str], Tensor]) -> Importance:
    """Scores of the elements of matrices as those of heads and neurons.

    Args:
        element: from a module's name in the base model to a score of each element of its weight, [rows, columns].
    """
    table, head_rows = supernet.architecture, supernet.dimensions.head_rows
    heads: list[Tensor] = []
    neurons: list[Tensor] = []
    for layer in range(supernet.dimensions.layers):
        stem = f"{table.layers}.{layer}."
        groups = ((heads, table.head_rows, table.head_columns), (neurons, table.neuron_rows, table.neuron_columns))
        for found, row_names, column_names in groups:
            rows = [element(stem + name).sum(1) for name in row_names]
            columns = [element(stem + name).sum(0) for name in column_names]
            found.append(torch.stack([*rows, *columns]).sum(0))
    return Importance(torch.stack(heads).unflatten(1, (-1, head_rows)).sum(2), torch.stack(neurons))


def _squared(linear: Any) -> Tensor:
    return (linear.weight * linear.weight.grad) ** 2


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
