"""Looks at chosen sub-networks while a stage trains, on rows that it does not train on."""

from collections.abc import Mapping
from dataclasses import dataclass

from compressor.supernet.subnetworks import Subnetwork
from compressor.supernet.supernetwork import SuperNetwork
from compressor.tasks import Array, Task
from compressor.training.batches import Batches
from compressor.training.prediction import one_size, predict


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

    def score(self, supernet: SuperNetwork) -> dict[str, float]:
        """The metric of each size; dropout is off meanwhile."""
        supernet.train(False)
        scores = {
            name: self.task.score(predict(one_size(supernet, size), self.batches), self.answers)
            for name, size in self.sizes.items()
        }
        supernet.train(True)
        return scores
