"""What the stages that train have in common."""

import shutil
from collections.abc import Mapping

import torch

from compressor.context import Context
from compressor.errors import CompressorError
from compressor.files import newest_checkpoint
from compressor.settings import FamilyTrainingSettings, ObjectiveSettings, TrainingSettings
from compressor.stages.base import TrainingStage
from compressor.supernet.subnetworks import Subnetwork
from compressor.supernet.supernetwork import SuperNetwork
from compressor.training import (
    Checkpoints,
    GradientStep,
    Monitor,
    Records,
    Sampler,
    Sandwich,
    Teacher,
    Training,
    everything,
    predict,
    steps_of,
    tracked,
    whole_model,
)


def learn(
    context: Context,
    stage: TrainingStage,
    supernet: SuperNetwork,
    sizes: Mapping[str, Subnetwork],
    objective: ObjectiveSettings,
    teacher: Teacher | None = None,
) -> str:
    """Train sizes of a super-network on the run's training data and save it in the stage's folder.

    Raises:
        CompressorError: the objective weighs labels and the data has none.
    """
    data, recipe, processes = context.data, context.recipe, context.processes
    if objective.labels and not data.labelled:
        raise CompressorError(f"stages ({stage.type}): {stage.type} learns from labels, and data.label names no column")
    half = _half(stage, processes.device)
    batches = data.batches(data.train, stage.batch_size, recipe.seed, multiple=8 if half else 1)
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
        training = Training(
            step=GradientStep(supernet, objective, data.task, teacher if objective.uses_teacher else None, half),
            sizes=sizes,
            sampler=_sampler(stage, supernet, sizes, recipe.seed),
            settings=stage,
            processes=processes,
            records=Records(
                log if processes.main else None, tuple(sizes), objective.terms, stage.batch_size, shown, tracking
            ),
            checkpoints=checkpoints,
            interruption=context.interruption,
            seed=recipe.seed,
            monitor=_monitor(context, stage, sizes, teacher),
        )
        training.run(batches)
    if processes.main:
        shutil.copyfile(log, context.folder / log.name)
        context.save(supernet)
    what = f"{len(sizes)} sub-networks, " if len(sizes) > 1 else ""
    kept = f", the weights of step {training.best.step} kept" if training.best.weights else ""
    return f"{what}{len(data.train)} examples, {total} steps of {stage.batch_size}{kept}"


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
