"""What the stages that train have in common."""

from collections.abc import Mapping

from compressor.context import Context
from compressor.errors import CompressorError
from compressor.settings import ObjectiveSettings
from compressor.stages.base import TrainingStage
from compressor.supernet.subnetworks import Subnetwork
from compressor.supernet.supernetwork import SuperNetwork
from compressor.training import Teacher, Training


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
    data = context.data
    if objective.labels and not data.labelled:
        raise CompressorError(f"stages ({stage.type}): {stage.type} learns from labels, and data.label names no column")
    training = Training(
        supernet,
        sizes,
        objective,
        stage,
        data.task,
        context.progress,
        context.folder / "metrics.jsonl",
        teacher if objective.uses_teacher else None,
    )
    training.run(data.batches(data.train, stage.batch_size, context.recipe.seed), stage.type)
    context.save(supernet)
    what = f"{len(sizes)} sub-networks, " if len(sizes) > 1 else ""
    return f"{what}{len(data.train)} examples, {stage.epochs} epoch{'s' if stage.epochs > 1 else ''}"
