"""Answers of models, batch after batch."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from compressor.supernet.subnetworks import Subnetwork
from compressor.supernet.supernetwork import SuperNetwork
from compressor.tasks import Array
from compressor.training.batches import Batch, Batches, split_labels


@torch.no_grad()
def predict(run: Callable[[Batch], Tensor], batches: Batches) -> Array:
    """Logits [N, outputs] of every row, in order, for a function from a batch to logits."""
    logits = [run(split_labels(batch)[0]).float().cpu() for batch in batches]
    return torch.cat(logits).numpy()


def whole_model(model: Any) -> Callable[[Batch], Tensor]:
    """A stock model as a function from a batch to logits, dropout off."""
    model.eval()
    device = next(model.parameters()).device
    return lambda batch: model(**{name: value.to(device) for name, value in batch.items()}).logits


def one_size(supernet: SuperNetwork, size: Subnetwork) -> Callable[[Batch], Tensor]:
    """A sub-network as a function from a batch to logits; dropout is as the super-network has it."""
    device = next(supernet.model.parameters()).device

    def answer(batch: Batch) -> Tensor:
        inputs = {name: value.to(device) for name, value in batch.items()}
        return supernet.run(size, supernet.embed(inputs), inputs["attention_mask"]).logits

    return answer
