"""One objective that composes the losses: what a stage trains each sub-network towards."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from compressor.losses import relations
from compressor.losses.geometry import Geometry
from compressor.losses.hidden import hidden_mse
from compressor.settings import ObjectiveSettings
from compressor.tasks import Head

T = TypeVar("T")


@dataclass(frozen=True)
class Outputs:
    """What a model says of a batch: logits [B, outputs] and, where needed, the geometry of its matched states.

    A teacher's geometry serves every student that is compared with it.
    """

    logits: Tensor
    geometry: Geometry | None = None


def geometry(settings: ObjectiveSettings, states: tuple[Tensor, ...], mask: Tensor) -> Geometry:
    """Of hidden states (a tuple of [B, n, d]), as an objective compares them; mask [B, n]."""
    return Geometry(torch.stack(states, dim=1), mask, settings.relation_temperature)


def terms(
    settings: ObjectiveSettings, task: Head, student: Outputs, teacher: Outputs | None, labels: Tensor | None
) -> dict[str, Tensor]:
    """Every term with a weight, already multiplied by it; their sum is the loss.

    L = w_logits·L_logits + w_labels·L_labels + w_mse·L_mse + Σ w_r·L_r over the relations.

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
            _given(_given(teacher, "a teacher").geometry, "the teacher's states"),
            _given(student.geometry, "the student's states"),
        )
    return found


def _state_terms(settings: ObjectiveSettings, teacher: Geometry, student: Geometry) -> dict[str, Tensor]:
    how, distances, angles = settings.normalization, settings.distance_penalty, settings.angle_penalty
    losses: dict[str, Callable[[], Tensor]] = {
        "hidden_mse": lambda: hidden_mse(teacher.states, student.states, student.mask, normalization=how),
        "word_pair": lambda: relations.pair_divergence(teacher.words, student.words, how),
        "word_distance": lambda: relations.pair_distance(teacher.words, student.words, how, distances),
        "word_angle": lambda: relations.angle(teacher.words, student.words, how, angles, settings.window),
        "layer_pair": lambda: relations.pair_divergence(teacher.layers, student.layers, how),
        "layer_distance": lambda: relations.pair_distance(teacher.layers, student.layers, how, distances),
        "layer_angle": lambda: relations.angle(teacher.layers, student.layers, how, angles),
    }
    return {name: weight * loss() for name, loss in losses.items() if (weight := getattr(settings, name))}


def _given(value: T | None, name: str) -> T:
    if value is None:
        raise ValueError(f"the objective needs {name}, and none is given")
    return value
