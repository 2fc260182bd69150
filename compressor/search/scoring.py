"""Metric and loss of many sub-networks at once."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from compressor.supernet.prefixes import Branch, branches
from compressor.supernet.subnetworks import Subnetwork
from compressor.supernet.supernetwork import SuperNetwork
from compressor.tasks import Array, Task, label_tensor
from compressor.training import Batches, split_labels


@dataclass(frozen=True)
class Score:
    """What a sub-network's answers are worth."""

    metric: float
    loss: float


@dataclass(frozen=True)
class Scorer:
    """Scores sub-networks on rows; embeddings and layers that several have in common run once for all of them.

    Attributes:
        answers: labels of the rows, or what stands for them, [N].
    """

    supernet: SuperNetwork
    batches: Batches
    task: Task
    answers: Array

    @property
    def rows(self) -> int:
        """How many rows sub-networks are scored on."""
        return len(self.answers)

    @torch.no_grad()
    def score(self, sizes: Mapping[str, Subnetwork]) -> dict[str, Score]:
        """Of sub-networks by any names."""
        self.supernet.train(False)
        logits: dict[str, list[Tensor]] = {name: [] for name in sizes}
        tree = branches(sizes)
        for batch in self.batches:
            inputs = split_labels(batch)[0]
            embeddings = self.supernet.embed(inputs)
            mask = self.supernet.spread(embeddings, inputs["attention_mask"])
            for branch in tree:
                self._along(branch, embeddings, mask, logits)
        labels = label_tensor(self.task, self.answers.tolist())
        return {name: self._score(torch.cat(parts), labels) for name, parts in logits.items()}

    def _along(self, branch: Branch, states: Tensor, mask: Tensor, logits: dict[str, list[Tensor]]) -> None:
        output = self.supernet.run(branch.layers, states, mask, hidden_states=branch.name is None)
        if branch.name is not None:
            logits[branch.name].append(output.logits.float())
            return
        for following in branch.branches:
            self._along(following, output.hidden_states[-1], mask, logits)

    def _score(self, logits: Tensor, labels: Tensor) -> Score:
        return Score(self.task.score(logits.numpy(), self.answers), float(self.task.label_loss(logits, labels)))
