"""Students that are no part of their teacher: encoders of another shape, and what they take over from it."""

import copy
from typing import Any

import torch
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification

from compressor import models
from compressor.errors import CompressorError
from compressor.recipe import Recipe
from compressor.settings import NewStudent
from compressor.stages.distill import Distill
from compressor.supernet.architectures import architecture_of, dimensions_of
from compressor.supernet.subnetworks import kept_layers


def student_config(student: NewStudent | str, teacher: Any) -> Any:
    """The configuration of a student of a teacher with this configuration.

    Raises:
        CompressorError: its heads do not divide its width, or it cannot be loaded.
    """
    if isinstance(student, str):
        return models.load_config(student)
    config = copy.deepcopy(teacher)
    config.update(
        {
            "num_hidden_layers": student.layers,
            "hidden_size": student.hidden,
            "num_attention_heads": student.heads,
            "intermediate_size": student.intermediate,
            # Signals keep their size from layer to layer, whatever the width.
            "initializer_range": student.hidden**-0.5,
        }
    )
    dimensions_of(config)
    return config


def family_config(recipe: Recipe, source: Any) -> Any:
    """The configuration of the model that a recipe's family is cut from: its own (`source`), or its student's."""
    for stage in recipe.stages:
        if isinstance(stage, Distill):
            return student_config(stage.student, source)
    return source


def new_student(config: Any, masked_words: bool) -> Any:
    """A model with random weights: a classifier, or one that guesses hidden words."""
    kind = AutoModelForMaskedLM if masked_words else AutoModelForSequenceClassification
    return kind.from_config(config)


def load_masked_language_model(source: str) -> Any:
    """An encoder from a folder or the hub with a head that guesses hidden words; a new one if it has none."""
    with models.reading(source), models.quiet():
        return AutoModelForMaskedLM.from_pretrained(source, use_safetensors=True)


def layers_of(teacher: int, student: int) -> tuple[int, ...]:
    """The teacher's layers (from 1) that a student begins with if nobody says: spaced evenly, the last one included."""
    if student > teacher:
        return ()
    return tuple(layer + 1 for layer in kept_layers(teacher, student, "paper"))


@torch.no_grad()
def take_over(student: Any, teacher: Any, layers: tuple[int, ...]) -> tuple[int, int]:
    """Copy a teacher's tensors into a student wherever name and shape are the same.

    Args:
        layers: the teacher's layer (from 1) that each layer of the student begins with.

    Returns:
        How many tensors were copied, and how many the student has.
    """
    base = f"{student.base_model_prefix}."
    stem = f"{base}{architecture_of(student.config.model_type).layers}."
    known = dict(teacher.named_parameters())
    copied = 0
    parameters = dict(student.named_parameters())
    for name, parameter in parameters.items():
        source = name
        if name.startswith(stem):
            place, rest = name.removeprefix(stem).split(".", 1)
            source = f"{stem}{layers[int(place)] - 1}.{rest}" if layers else ""
        if source in known and known[source].shape == parameter.shape:
            parameter.copy_(known[source])
            copied += 1
    return copied, len(parameters)


def check_tokenizer(student: str, tokenizer: Any) -> None:
    """Raise CompressorError unless a student's own tokenizer gives the same ids to the same pieces."""
    if models.load_tokenizer(student).get_vocab() != tokenizer.get_vocab():
        raise CompressorError(
            f"student: {student} has another vocabulary than the teacher; relations compare word by word, so both must "
            "cut texts into the same pieces"
        )
