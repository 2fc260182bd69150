"""One step of several sub-networks: the gradients of all of them for one batch."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.profiler import record_function

from compressor.losses.geometry import Geometry
from compressor.losses.objective import Outputs, geometry, terms
from compressor.settings import ObjectiveSettings
from compressor.supernet.prefixes import Branch, branches
from compressor.supernet.subnetworks import Subnetwork
from compressor.supernet.supernetwork import SuperNetwork
from compressor.tasks import Head
from compressor.training.batches import Batch, split_labels
from compressor.training.teacher import Teacher

Losses = dict[str, dict[str, Tensor]]
States = tuple[Tensor, ...]


@dataclass(frozen=True)
class GradientStep:
    """Adds the gradients of sub-networks for a batch to those of the super-network's parameters.

    What sub-networks have in common runs forward and backward once: the embeddings, and the layers with which sizes
    of one width and several depths begin (their dropout is shared too). The gradients are those of a loop over
    the sub-networks.

    Attributes:
        teacher: needed where the objective has a term of distillation.
        half: compute matrix products in bfloat16; parameters, gradients and losses stay in float32.
    """

    supernet: SuperNetwork
    objective: ObjectiveSettings
    task: Head
    teacher: Teacher | None = None
    half: bool = False

    def __call__(
        self, batch: Batch, sizes: Mapping[str, Subnetwork], weights: Mapping[str, float] | None = None
    ) -> Losses:
        """Losses by size and by term, each multiplied by its weight; nothing waits for the device.

        Args:
            batch: on the device of the super-network.
            weights: multiplied onto the terms: the shares of a batch that is a part of a larger one.
        """
        inputs, labels = split_labels(batch)
        answers: dict[str, Outputs] = {}
        if self.teacher:
            with record_function("teacher"), self.precision():
                answers = self.teacher.answer(inputs, sizes, self.objective)
        with record_function("embeddings"), self.precision():
            embeddings = self.supernet.embed(inputs)
        # Every branch starts from leaves; what they collect goes back once, when all branches have added to it.
        start = embeddings.detach().requires_grad_()
        mask = inputs["attention_mask"]
        walk = _Walk(self, mask, self.supernet.spread(embeddings, mask), labels, sizes, answers, weights or {}, {})
        with warnings.catch_warnings():
            # Gradients of column slices are column slices themselves, which torch notes once, and which is wanted here.
            warnings.filterwarnings("ignore", "grad and param do not obey the gradient layout contract")
            for branch in branches(sizes):
                walk.along(branch, (start,))
        with record_function("embeddings"):
            embeddings.backward(start.grad)
        return {name: walk.losses[name] for name in sizes}

    def precision(self) -> torch.autocast:
        """What forward passes run under; backward passes take the precision of their forward pass."""
        device = next(self.supernet.model.parameters()).device.type
        return torch.autocast(device, torch.bfloat16, enabled=self.half)


@dataclass(frozen=True)
class _Walk:
    """The way of one batch through the tree of sub-networks."""

    step: GradientStep
    mask: Tensor
    spread: Tensor
    labels: Tensor | None
    sizes: Mapping[str, Subnetwork]
    answers: Mapping[str, Outputs]
    weights: Mapping[str, float]
    losses: Losses

    def along(self, branch: Branch, before: States) -> None:
        """Run a stretch of layers from the last of the states before it, and everything behind it."""
        supernet = self.step.supernet
        leaves = supernet.inner_views(branch.layers, detached=True)
        states = branch.name is None or self.step.objective.uses_states
        with record_function("forward"), self.step.precision():
            output = supernet.run(branch.layers, before[-1], self.spread, tensors=leaves, hidden_states=states)
        own = output.hidden_states[1:] if states else ()
        if branch.name is not None:
            self._finish(branch.name, output.logits, (*before, *own))
        else:
            self._branch_off(branch, before, own)

    def _finish(self, name: str, logits: Tensor, states: States) -> None:
        objective = self.step.objective
        with record_function("losses"):
            student = Outputs(logits, self._geometry(name, states))
            found = terms(objective, self.step.task, student, self.answers.get(name), self.labels)
            found = {term: value * self.weights.get(term, 1.0) for term, value in found.items()}
            total = torch.stack(list(found.values())).sum()
        with record_function("backward"):
            total.backward()
        self.losses[name] = {term: value.detach() for term, value in found.items()}

    def _geometry(self, name: str, states: States) -> Geometry | None:
        teacher, objective = self.step.teacher, self.step.objective
        if teacher is None or not objective.uses_states:
            return None
        chosen = teacher.matching(self.sizes[name], objective).student
        return geometry(objective, tuple(states[index] for index in chosen), self.mask)

    def _branch_off(self, branch: Branch, before: States, own: States) -> None:
        leaves = tuple(state.detach().requires_grad_() for state in own)
        for following in branch.branches:
            self.along(following, (*before, *leaves))
        reached = [(state, leaf.grad) for state, leaf in zip(own, leaves, strict=True) if leaf.grad is not None]
        with record_function("backward"):
            torch.autograd.backward([state for state, _ in reached], [gradient for _, gradient in reached])
