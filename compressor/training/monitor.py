"""Looks at chosen sub-networks while a stage trains, on rows that it does not train on."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from compressor.supernet.subnetworks import Subnetwork
from compressor.supernet.supernetwork import SuperNetwork
from compressor.tasks import Array, Task
from compressor.training.batches import Batch, Batches
from compressor.training.prediction import predict


@dataclass(frozen=True)
class Monitor:
    """The metric of chosen sub-networks on the part of the training data that is held out.

    Attributes:
        sizes: that are scored.
        batches: of the held-out rows, in their order.
        answers: that predictions are compared with, [N].
        times: evenly over a stage; the last one is behind its last step.
        keeps_best: whether the weights with the highest mean score are the stage's result; of equal ones the earliest.
    """

    sizes: Mapping[str, Subnetwork]
    batches: Batches
    answers: Array
    task: Task
    times: int
    keeps_best: bool

    def due(self, step: int, total: int) -> bool:
        """Whether this step of so many is one to look at."""
        return step * self.times // total > (step - 1) * self.times // total

    def score(self, supernet: SuperNetwork, device: torch.device) -> dict[str, float]:
        """The metric of each size; dropout is off meanwhile."""
        supernet.train(False)
        scores = {
            name: self.task.score(predict(answering(supernet, size, device), self.batches), self.answers)
            for name, size in self.sizes.items()
        }
        supernet.train(True)
        return scores


def answering(supernet: SuperNetwork, size: Subnetwork, device: torch.device) -> Callable[[Batch], Tensor]:
    """One sub-network as a function from a batch to logits."""

    def answer(batch: Batch) -> Tensor:
        inputs = {name: value.to(device) for name, value in batch.items()}
        return supernet.run(size, supernet.embed(inputs), inputs["attention_mask"]).logits

    return answer
