"""What the width and the depth stage share: distil a teacher into sub-networks and leave a checkpoint."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Union

from compressor.context import Context
from compressor.errors import CompressorError
from compressor.supernet.subnetworks import Subnetwork
from compressor.supernet.supernetwork import SuperNetwork
from compressor.training import Teacher, Training

if TYPE_CHECKING:
    from compressor.stages.depth import Depth
    from compressor.stages.width import Width


def distil(
    context: Context,
    stage: Union["Width", "Depth"],
    student: SuperNetwork,
    sizes: Mapping[str, Subnetwork],
    teacher: Teacher,
) -> str:
    """Train the sizes on the run's training data and save the super-network.

    Raises:
        CompressorError: the objective asks for labels and the data has none.
    """
    data = context.data
    objective = context.recipe.objective_of(stage)
    if objective.labels and not data.labelled:
        raise CompressorError(f"stages ({stage.type}): the objective weighs labels, and data.label names no column")
    Training(
        student,
        sizes,
        objective,
        stage,
        data.task,
        context.progress,
        context.folder / "metrics.jsonl",
        teacher if objective.uses_teacher else None,
    ).run(data.batches(data.train, stage.batch_size, context.recipe.seed), stage.type)
    context.save(student)
    return f"{len(sizes)} sub-networks, {len(data.train)} examples, {stage.epochs} epochs"
