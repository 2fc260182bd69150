"""Stage `depth`: the width-and-depth-adaptive super-network."""

from typing import TYPE_CHECKING, ClassVar, Literal

from compressor.settings import ObjectiveSettings
from compressor.stages.base import FamilyTrainingStage

if TYPE_CHECKING:
    from compressor.context import Context


class Depth(FamilyTrainingStage):
    """Distil the width-adaptive network into every width and depth (DynaBERT, section 2.2, Algorithm 3).

    `teacher_width: full` runs the teacher once, at full width, as Huawei's code does; `same` runs it at the
    student's width, as the paper says (the maintainers found no difference). A sub-network's hidden states are
    compared with those of the layers it keeps.
    """

    type: Literal["depth"] = "depth"
    objective: ObjectiveSettings | None = None
    teacher_width: Literal["same", "full"] = "full"

    needs: ClassVar[tuple[str, ...]] = ("width",)
    precedes: ClassVar[tuple[str, ...]] = ("finetune_family", "prune_vocabulary", "search", "export")
    reads: ClassVar[frozenset[str]] = frozenset({"family", "objective", "unlabelled"})

    def check(self, context: "Context", path: str) -> None:
        from compressor.losses.matching import check_matching

        check_matching(
            context.recipe.objective_of(self),
            context.dimensions.layers,
            (len(size.kept) for size in context.sizes(context.dimensions).values()),
            path,
        )

    def run(self, context: "Context") -> str:
        from compressor.stages.learning import learn
        from compressor.supernet.subnetworks import Subnetwork
        from compressor.training import Teacher

        student, teacher = context.latest(), context.load(context.checkpoints["width"])
        sizes = context.sizes(student.dimensions)
        layers = teacher.dimensions.layers
        taught_by = dict.fromkeys(sizes, teacher.whole)
        if self.teacher_width == "same":
            taught_by = {
                name: Subnetwork(tuple(range(layers)), size.heads[:1] * layers, size.neurons[:1] * layers)
                for name, size in sizes.items()
            }
        supervision = Teacher(teacher, taught_by, context.recipe.family.depth_rule)
        return learn(context, self, student, sizes, context.recipe.objective_of(self), supervision)
