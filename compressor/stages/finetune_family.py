"""Stage `finetune_family`: the last touch, on labels alone."""

from typing import TYPE_CHECKING, ClassVar, Literal

from compressor.settings import Count, ObjectiveSettings
from compressor.stages.base import FamilyTrainingStage

if TYPE_CHECKING:
    from compressor.context import Context


class FinetuneFamily(FamilyTrainingStage):
    """Fine-tune all sub-networks together on labels, without a teacher (DynaBERT's final fine-tuning)."""

    type: Literal["finetune_family"] = "finetune_family"
    epochs: Count = 1

    needs: ClassVar[tuple[str, ...]] = ("width",)
    precedes: ClassVar[tuple[str, ...]] = ("prune_vocabulary", "search", "export")
    reads: ClassVar[frozenset[str]] = frozenset({"family"})

    def run(self, context: "Context") -> str:
        from compressor.stages.learning import learn

        supernet = context.latest()
        return learn(context, self, supernet, context.sizes(supernet.dimensions), ObjectiveSettings(labels=1.0))
