"""Stage `reorder`: rank heads and neurons, and put the important ones first."""

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import model_validator

from compressor.settings import Count
from compressor.stages.base import Stage

if TYPE_CHECKING:
    from compressor.context import Context


class Reorder(Stage):
    """DynaBERT's network rewiring (section 2.1): importance on a slice of the training data, then reordering.

    The validation data is never ranked on. Where there are no labels, the teacher's own predictions stand in.
    `criterion` is `dynabert` (gates on heads and neurons), `taylor` (squares of weight times gradient) or `magnitude`
    (weights alone). `backend: nni` ranks by NNI's Taylor pruner, to the same order; `reduction` over batches is
    `dynabert`'s.
    """

    type: Literal["reorder"] = "reorder"
    examples: Count = 512
    batch_size: Count = 32
    criterion: Literal["dynabert", "taylor", "magnitude"] = "dynabert"
    reduction: Literal["sum_abs", "abs_sum", "reference"] = "sum_abs"
    backend: Literal["torch", "nni"] = "torch"

    @model_validator(mode="after")
    def _fits(self) -> "Reorder":
        if self.criterion == "magnitude" and self.backend == "nni":
            raise ValueError("criterion magnitude reads no gradients, which is all that backend nni is for; use torch")
        return self

    precedes: ClassVar[tuple[str, ...]] = ("width", "depth", "finetune_family", "prune_vocabulary", "search", "export")
    checkpoint: ClassVar[bool] = True

    def run(self, context: "Context") -> str:
        from safetensors.torch import save_file

        from compressor.supernet.rewiring import rewire

        data, supernet = context.data, context.trained()
        rows = data.train.shuffle(seed=context.recipe.seed).select(range(min(self.examples, len(data.train))))
        scores = self._scores(supernet, data.batches(rows, self.batch_size), _loss(data.task))
        rewire(supernet, scores)
        save_file({"heads": scores.heads, "neurons": scores.neurons}, context.folder / "importance.safetensors")
        context.save(supernet.model)
        if self.criterion == "magnitude":
            return "ranked by the sizes of the weights"
        return f"ranked on {len(rows)} training examples" + ("" if data.labelled else ", by the teacher's predictions")

    def _scores(self, supernet: Any, batches: Any, loss: Any) -> Any:
        from compressor.supernet.importance import GateGradients, SquaredTaylor, importance, magnitude

        if self.criterion == "magnitude":
            return magnitude(supernet)
        if self.backend == "nni":
            from compressor.search.pruner import importance_by_nni

            return importance_by_nni(supernet, batches, loss, self.criterion, self.reduction)
        collector = GateGradients(self.reduction) if self.criterion == "dynabert" else SquaredTaylor()
        return importance(supernet, batches, loss, collector)


def _loss(task: Any) -> Any:
    """Loss of a model and a batch, against labels or the model's own predictions."""
    from compressor.tasks import Regression, label_tensor
    from compressor.training import split_labels

    def loss(model: Any, batch: Any) -> Any:
        inputs, labels = split_labels(batch)
        logits = model(**inputs).logits
        if labels is None:
            labels = label_tensor(task, task.predict(logits.detach().cpu().numpy()).tolist())
            if isinstance(task, Regression):
                # The squared error against the own output is 0 everywhere: rank by the output itself.
                return logits.mean()
        return task.label_loss(logits, labels)

    return loss
