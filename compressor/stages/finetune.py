"""Stage `finetune`: make the teacher."""

from typing import TYPE_CHECKING, ClassVar, Literal

from compressor.settings import ObjectiveSettings
from compressor.stages.base import TrainingStage

if TYPE_CHECKING:
    from compressor.context import Context


class Finetune(TrainingStage):
    """Fine-tune the whole model on labels: the teacher of everything that follows.

    `when: untrained` leaves a model alone whose head is trained already, and says so.
    """

    type: Literal["finetune"] = "finetune"
    when: Literal["untrained", "always"] = "untrained"

    precedes: ClassVar[tuple[str, ...]] = (
        "reorder",
        "width",
        "depth",
        "finetune_family",
        "prune_vocabulary",
        "search",
        "export",
    )

    def run(self, context: "Context") -> str:
        from compressor.stages.learning import learn
        from compressor.supernet.supernetwork import SuperNetwork

        model, trained = context.start_model()
        supernet = SuperNetwork(model)
        if trained and self.when == "untrained":
            context.save(supernet.model)
            return "skipped: the model has a trained head"
        return learn(context, self, supernet, {"teacher": supernet.whole}, ObjectiveSettings(labels=1.0))
