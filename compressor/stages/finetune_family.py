"""Stage `finetune_family`: the last touch, on labels alone."""

from typing import TYPE_CHECKING, ClassVar, Literal

from compressor.settings import ObjectiveSettings, TrainingSettings
from compressor.stages.base import Stage

if TYPE_CHECKING:
    from compressor.context import Context


class FinetuneFamily(Stage, TrainingSettings):
    """Fine-tune all sub-networks together on labels, without a teacher (DynaBERT's final fine-tuning)."""

    type: Literal["finetune_family"] = "finetune_family"
    epochs: int = 1

    needs: ClassVar[tuple[str, ...]] = ("width",)
    precedes: ClassVar[tuple[str, ...]] = ("export",)
    reads: ClassVar[frozenset[str]] = frozenset({"family"})
    checkpoint: ClassVar[bool] = True

    def run(self, context: "Context") -> str:
        from compressor.errors import CompressorError
        from compressor.training import Training

        data, supernet = context.data, context.latest()
        if not data.labelled:
            raise CompressorError("data.label: finetune_family needs labels; name the column or leave the stage out")
        sizes = context.sizes(supernet)
        Training(
            supernet,
            sizes,
            ObjectiveSettings(labels=1.0),
            self,
            data.task,
            context.progress,
            context.folder / "metrics.jsonl",
        ).run(data.batches(data.train, self.batch_size, context.recipe.seed), self.type)
        context.save(supernet)
        return f"{len(sizes)} sub-networks, {len(data.train)} examples, {self.epochs} epochs"
