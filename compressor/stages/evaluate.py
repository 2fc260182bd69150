"""Stage `evaluate`: the metric of every size on the validation data."""

from typing import TYPE_CHECKING, ClassVar, Literal

from compressor.settings import Count
from compressor.stages.base import Stage

if TYPE_CHECKING:
    from compressor.context import Context


class Evaluate(Stage):
    """Score the teacher and each size, as PyTorch, ONNX fp32 and ONNX int8, on data that nothing was tuned on.

    Where the validation data has no labels, the teacher's predictions stand in, and the figures are agreement
    with the teacher. int8 answers depend a little on which texts share a batch.
    """

    type: Literal["evaluate"] = "evaluate"
    batch_size: Count = 32

    needs: ClassVar[tuple[str, ...]] = ("export",)
    reads: ClassVar[frozenset[str]] = frozenset({"validation"})
    delivers: ClassVar[tuple[str, ...]] = ("family/family.json",)

    def run(self, context: "Context") -> str:
        from compressor import models
        from compressor.data import by_length
        from compressor.export.manifest import read_manifest, write_manifest
        from compressor.files import write_json
        from compressor.stages.answers import graph_answers
        from compressor.training import predict, whole_model

        data, shipped, folder = context.data, context.shipped_data, context.family_folder
        family, load = read_manifest(folder), models.size_loader(folder)
        order = by_length(shipped.validation)
        rows = data.validation.select(order)
        taught = predict(whole_model(context.teacher().model), data.batches(rows, self.batch_size))
        batches = shipped.batches(shipped.validation.select(order), self.batch_size)
        labels = data.labels(rows)
        answers = data.task.predict(taught) if labels is None else labels
        scores: dict[str, dict[str, float]] = {"teacher": {"torch": data.task.score(taught, answers)}}
        with context.progress.task(self.type, len(family.sizes)) as shown:
            for size in family.sizes:
                found = {"torch": predict(whole_model(load(size.name)), batches)}
                found |= {kind: graph_answers(folder / graph, batches) for kind, graph in size.graphs.items()}
                scores[size.name] = {kind: data.task.score(logits, answers) for kind, logits in found.items()}
                shown.note(f"{size.name} {scores[size.name]['torch']:.3f}")
                shown.advance()
        summary = {
            "metric": data.task.metric,
            "rows": len(rows),
            "against": "labels" if labels is not None else "the teacher's predictions",
            "baseline": data.task.baseline(answers),
        }
        write_json(context.folder / "scores.json", {**summary, "scores": scores})
        write_manifest(family.with_scores(summary, scores), folder)
        return f"{data.task.metric} on {len(rows)} validation examples, against {summary['against']}"
