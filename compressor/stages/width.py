"""Stage `width`: the width-adaptive super-network."""

from typing import TYPE_CHECKING, ClassVar, Literal

from compressor.settings import ObjectiveSettings
from compressor.stages.base import FamilyTrainingStage

if TYPE_CHECKING:
    from compressor.context import Context


class Width(FamilyTrainingStage):
    """Distil the teacher into every width at full depth (DynaBERT, section 2.1, Algorithm 2).

    All widths of the family learn from every batch; hidden states are compared one to one.
    Without an `objective` of its own the stage takes the recipe's.
    """

    type: Literal["width"] = "width"
    objective: ObjectiveSettings | None = None

    precedes: ClassVar[tuple[str, ...]] = ("depth", "finetune_family", "prune_vocabulary", "search", "export")
    reads: ClassVar[frozenset[str]] = frozenset({"family", "objective", "unlabelled"})

    def check(self, context: "Context", path: str) -> None:
        from compressor.losses.matching import check_matching

        check_matching(context.recipe.objective_of(self), context.dimensions.layers, (context.dimensions.layers,), path)

    def run(self, context: "Context") -> str:
        from compressor.stages.learning import learn
        from compressor.supernet.subnetworks import grid
        from compressor.training import Teacher

        student, teacher = context.latest(), context.trained()
        sizes = grid(student.dimensions, context.recipe.family.widths, (1.0,))
        taught_by = Teacher(teacher, dict.fromkeys(sizes, teacher.whole), "paper")
        return learn(context, self, student, sizes, context.recipe.objective_of(self), taught_by)
