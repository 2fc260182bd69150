"""What the stages that train have in common."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from compressor.context import Context
from compressor.errors import CompressorError
from compressor.files import newest_checkpoint
from compressor.settings import FamilyTrainingSettings, ObjectiveSettings, TrainingSettings
from compressor.stages.base import TrainingStage
from compressor.supernet.subnetworks import Subnetwork
from compressor.supernet.supernetwork import SuperNetwork
from compressor.tasks import Head
from compressor.training import (
    Batches,
    Checkpoints,
    GradientStep,
    Monitor,
    Records,
    Sampler,
    Sandwich,
    Stream,
    Teacher,
    Training,
    everything,
    predict,
    steps_of,
    tracked,
    whole_model,
)


@dataclass(frozen=True)
class Material:
    """What a stage learns from.

    Attributes:
        batches: made for a multiple of tokens that they are padded to.
        head: what the logits are trained towards.
        name: how the result names it.
        trains_head: whether the head learns too; an encoder alone is saved otherwise.
    """

    batches: Callable[[int], Batches | Stream]
    head: Head
    name: str
    trains_head: bool = True


def learn(
    context: Context,
    stage: TrainingStage,
    supernet: SuperNetwork,
    sizes: Mapping[str, Subnetwork],
    objective: ObjectiveSettings,
    teacher: Teacher | None = None,
    material: Material | None = None,
) -> str:
    """Train sizes of a super-network and save it in the stage's folder.

    Args:
        material: None takes the run's training data.

    Raises:
        CompressorError: the objective weighs labels and the data has none.
    """
    recipe, processes = context.recipe, context.processes
    material = material or _rows(context, stage, objective)
    half = _half(stage, processes.device)
    batches = material.batches(8 if half else 1)
    total = steps_of(stage, len(batches))
    checkpoints = Checkpoints(context.partial, recipe.checkpoints.minutes * 60, recipe.checkpoints.keep)
    log = context.partial / "metrics.jsonl"
    tracker = tracked(
        recipe.tracking if processes.main else None,
        context.output / "tracking",
        context.partial.stem,
        stage.model_dump(),
    )
    with context.progress.task(stage.type, total, newest_checkpoint(context.partial)) as shown, tracker as tracking:
        listeners = [*([tracking.log] if tracking else []), *context.listeners]
        training = Training(
            step=GradientStep(supernet, objective, material.head, teacher if objective.uses_teacher else None, half),
            sizes=sizes,
            sampler=_sampler(stage, supernet, sizes, recipe.seed),
            settings=stage,
            processes=processes,
            records=Records(
                log if processes.main else None, tuple(sizes), objective.terms, stage.batch_size, shown, listeners
            ),
            checkpoints=checkpoints,
            interruption=context.interruption,
            seed=recipe.seed,
            monitor=_monitor(context, stage, sizes, teacher),
        )
        training.run(batches)
    if processes.main:
        shutil.copyfile(log, context.folder / log.name)
        context.save(supernet.model if material.trains_head else supernet.model.base_model)
    what = f"{len(sizes)} sub-networks, " if len(sizes) > 1 else ""
    kept = f", the weights of step {training.best.step} kept" if training.best.weights else ""
    return f"{what}{material.name}, {total} steps of {stage.batch_size}{kept}"


def _rows(context: Context, stage: TrainingStage, objective: ObjectiveSettings) -> Material:
    """The run's training data, and texts without labels where a stage reads them."""
    data, seed = context.data, context.recipe.seed
    if objective.labels and not data.labelled:
        raise CompressorError(f"stages ({stage.type}): {stage.type} learns from labels, and data.label names no column")
    rows = data.texts if "unlabelled" in stage.reads else data.train
    return Material(
        lambda multiple: data.batches(rows, stage.batch_size, seed, multiple), data.task, f"{len(rows)} examples"
    )


def _half(settings: TrainingSettings, device: torch.device) -> bool:
    if settings.precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return settings.precision == "bf16"


def _sampler(stage: TrainingStage, supernet: SuperNetwork, sizes: Mapping[str, Subnetwork], seed: int) -> Sampler:
    if isinstance(stage, FamilyTrainingSettings) and stage.subnetworks == "sandwich":
        costs = {name: supernet.parameters(size) for name, size in sizes.items()}
        return Sandwich(sizes, costs, stage.drawn, seed)
    return everything(sizes)


def _monitor(
    context: Context, stage: TrainingStage, sizes: Mapping[str, Subnetwork], teacher: Teacher | None
) -> Monitor | None:
    settings, data = stage.monitor, context.data
    if settings is None or data.selection is None:
        return None
    chosen = settings.sizes or tuple(sizes)
    batches = data.batches(data.selection, stage.batch_size)
    answers = data.labels(data.selection)
    if answers is None:
        assert teacher is not None  # what learns without labels learns from a teacher
        model = teacher.supernet.model.to(context.processes.device)
        answers = data.task.predict(predict(whole_model(model), batches))
    return Monitor(
        {name: sizes[name] for name in chosen}, batches, answers, data.task, settings.times, settings.keep == "best"
    )
