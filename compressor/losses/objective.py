"""One objective that composes the losses: what a stage trains each sub-network towards."""

from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from compressor.losses.hidden import hidden_mse
from compressor.losses.relations import layer_angle, layer_pair, word_angle, word_pair
from compressor.settings import ObjectiveSettings
from compressor.tasks import Task

T = TypeVar("T")


@dataclass(frozen=True)
class Outputs:
    """What a model says of a batch: logits [B, outputs] and, where needed, matched states [B, L, n, d]."""

    logits: Tensor
    states: Tensor | None = None


def terms(
    settings: ObjectiveSettings,
    task: Task,
    student: Outputs,
    teacher: Outputs | None,
    mask: Tensor,
    labels: Tensor | None,
) -> dict[str, Tensor]:
    """Every term with a weight, already multiplied by it; their sum is the loss.

    L = w_logits·L_logits + w_labels·L_labels + w_mse·L_mse + Σ w_r·L_r over the four relations.

    Raises:
        ValueError: a term needs a teacher, states or labels that are not given.
    """
    found: dict[str, Tensor] = {}
    if settings.labels:
        found["labels"] = settings.labels * task.label_loss(student.logits, _given(labels, "labels"))
    if settings.logits:
        taught = _given(teacher, "a teacher").logits
        found["logits"] = settings.logits * task.logit_loss(taught, student.logits, settings.temperature)
    if settings.uses_states:
        found |= _state_terms(
            settings,
            _given(_given(teacher, "a teacher").states, "the teacher's states"),
            _given(student.states, "the student's states"),
            mask,
        )
    return found


def _state_terms(settings: ObjectiveSettings, teacher: Tensor, student: Tensor, mask: Tensor) -> dict[str, Tensor]:
    how = settings.normalization
    losses = {
        "hidden_mse": lambda: hidden_mse(teacher, student, mask, normalization=how),
        "word_pair": lambda: word_pair(teacher, student, mask, normalization=how),
        "word_angle": lambda: word_angle(teacher, student, mask, normalization=how, window=settings.window),
        "layer_pair": lambda: layer_pair(teacher, student, mask, normalization=how),
        "layer_angle": lambda: layer_angle(teacher, student, mask, normalization=how),
    }
    return {name: weight * loss() for name, loss in losses.items() if (weight := getattr(settings, name))}


def stack_states(states: tuple[Tensor, ...], chosen: tuple[int, ...] | None = None) -> Tensor:
    """Hidden states (a tuple of [B, n, d]) as one tensor [B, L, n, d], only the chosen ones in their order."""
    return torch.stack([states[index] for index in (chosen if chosen is not None else range(len(states)))], dim=1)


def _given(value: T | None, name: str) -> T:
    if value is None:
        raise ValueError(f"the objective needs {name}, and none is given")
    return value
