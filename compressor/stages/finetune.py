"""Stage `finetune`: make the teacher."""

from typing import TYPE_CHECKING, ClassVar, Literal

from compressor.settings import ObjectiveSettings, TrainingSettings
from compressor.stages.base import Stage

if TYPE_CHECKING:
    from compressor.context import Context


class Finetune(Stage, TrainingSettings):
    """Fine-tune the whole model on labels: the teacher of everything that follows.

    `when: untrained` leaves a model alone whose head is trained already, and says so.
    """

    type: Literal["finetune"] = "finetune"
    when: Literal["untrained", "always"] = "untrained"

    precedes: ClassVar[tuple[str, ...]] = ("reorder", "width", "depth", "finetune_family", "export")
    checkpoint: ClassVar[bool] = True

    def run(self, context: "Context") -> str:
        from compressor.errors import CompressorError
        from compressor.supernet.supernetwork import SuperNetwork
        from compressor.training import Training

        data = context.data
        model, trained = context.start_model()
        supernet = SuperNetwork(model)
        if trained and self.when == "untrained":
            context.save(supernet)
            return "skipped: the model has a trained head"
        if not data.labelled:
            raise CompressorError("data.label: finetune needs labels; name the column that holds them")
        Training(
            supernet,
            {"teacher": supernet.whole},
            ObjectiveSettings(labels=1.0),
            self,
            data.task,
            context.progress,
            context.folder / "metrics.jsonl",
        ).run(data.batches(data.train, self.batch_size, context.recipe.seed), self.type)
        context.save(supernet)
        return f"{len(data.train)} examples, {self.epochs} epochs"
