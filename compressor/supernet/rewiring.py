"""Rewiring: heads and neurons in the order of their importance, so that a size keeps the leading ones."""

import torch
from torch import Tensor, nn

from compressor.supernet.importance import Importance
from compressor.supernet.supernetwork import SuperNetwork


@torch.no_grad()
def rewire(supernet: SuperNetwork, scores: Importance) -> None:
    """Reorder heads and neurons of every layer in place, the most important first (DynaBERT, section 2.1).

    The model computes the same function as before, up to rounding: rows and columns move together.
    """
    table, head_rows = supernet.architecture, supernet.dimensions.head_rows
    layers = supernet.model.base_model.get_submodule(table.layers)
    for layer, heads, neurons in zip(layers, scores.heads, scores.neurons, strict=True):
        head_order = _blocks(_descending(heads), head_rows)
        neuron_order = _descending(neurons)
        for names, order in ((table.head_rows, head_order), (table.neuron_rows, neuron_order)):
            for name in names:
                _permute_rows(layer.get_submodule(name), order)
        for names, order in ((table.head_columns, head_order), (table.neuron_columns, neuron_order)):
            for name in names:
                weight = layer.get_submodule(name).weight
                weight.copy_(weight[:, order])


def _descending(scores: Tensor) -> Tensor:
    return scores.argsort(descending=True, stable=True)


def _blocks(order: Tensor, rows: int) -> Tensor:
    """An order of heads as an order of their rows."""
    return (order[:, None] * rows + torch.arange(rows, device=order.device)).flatten()


def _permute_rows(linear: nn.Linear, order: Tensor) -> None:
    linear.weight.copy_(linear.weight[order])
    linear.bias.copy_(linear.bias[order])
