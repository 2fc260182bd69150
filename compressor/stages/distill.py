"""Stage `distill`: a teacher into a student of any shape."""

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag

from compressor.settings import Corpus, Count, NewStudent, ObjectiveSettings
from compressor.stages.base import TrainingStage

if TYPE_CHECKING:
    from compressor.context import Context


def _kind_of_student(value: Any) -> str:
    return "folder or hub id" if isinstance(value, str) else "new student"


class Distill(TrainingStage):
    """Distil the teacher into one student of any depth, width and number of heads (CKD, section 3: relations are
    numbers, so nothing ties the student's shape to the teacher's).

    Without a `corpus` the fine-tuned teacher is distilled on the recipe's texts, with its logits (labels may be added);
    the stages behind it go on with the student. With a `corpus` the pre-trained encoder is distilled on texts
    without a task, as they go by, for `max_steps`: relations of hidden states, and if the objective weighs `labels`,
    guessing hidden words; a `finetune` stage follows.

    `init_layers` are the teacher's layers (from 1) that the student begins with, `spaced` evenly or `none`; whatever
    has the same shape is copied, embeddings and head too.
    """

    type: Literal["distill"] = "distill"
    student: Annotated[
        Annotated[str, Tag("folder or hub id")] | Annotated[NewStudent, Tag("new student")],
        Discriminator(_kind_of_student),
    ]
    init_layers: Annotated[tuple[Count, ...], Field(min_length=1)] | Literal["spaced", "none"] = "spaced"
    objective: ObjectiveSettings | None = None
    corpus: Corpus | None = None

    precedes: ClassVar[tuple[str, ...]] = (
        "reorder",
        "width",
        "depth",
        "finetune_family",
        "prune_vocabulary",
        "search",
        "export",
    )
    reads: ClassVar[frozenset[str]] = frozenset({"objective", "unlabelled"})

    def check(self, context: "Context", path: str) -> None:
        from compressor.data import open_corpus
        from compressor.errors import CompressorError
        from compressor.losses.matching import check_matching
        from compressor.students import check_tokenizer
        from compressor.supernet.architectures import dimensions_of

        teacher, student = dimensions_of(context.source_config), context.dimensions
        objective = self._objective(context)
        check_matching(objective, teacher.layers, (student.layers,), path)
        if objective.hidden_mse and teacher.hidden != student.hidden:
            raise CompressorError(
                f"{path}: objective.hidden_mse compares states of one width, and the teacher's is {teacher.hidden}, "
                f"the student's {student.hidden}; relations (word_pair, word_angle, ...) have no such limit"
            )
        if not isinstance(self.init_layers, str):
            if len(self.init_layers) != student.layers or max(self.init_layers) > teacher.layers:
                raise CompressorError(
                    f"{path}: init_layers {list(self.init_layers)}: the student has {student.layers} layers, and each "
                    f"begins with one of the teacher's 1 to {teacher.layers}"
                )
            if isinstance(self.student, str):
                raise CompressorError(f"{path}: init_layers: the student {self.student} has weights already")
        if isinstance(self.student, str):
            check_tokenizer(self.student, context.data.tokenizer)
        if self.corpus:
            open_corpus(self.corpus, context.recipe.seed)

    def run(self, context: "Context") -> str:
        from compressor.stages.learning import learn
        from compressor.students import take_over
        from compressor.supernet.supernetwork import SuperNetwork
        from compressor.training import Teacher

        teacher = SuperNetwork(context.start_model()[0]) if self.corpus else context.trained()
        student, loaded = self._student(context, teacher)
        words = ""
        if not loaded:
            copied, tensors = take_over(student, teacher.model, self._layers(teacher.dimensions.layers, student))
            words = f", {copied} of its {tensors} tensors from the teacher"
        supernet = SuperNetwork(student)
        taught_by = Teacher(teacher, {"student": teacher.whole}, "paper")
        material = self._material(context) if self.corpus else None
        objective = self._objective(context)
        trained = learn(context, self, supernet, {"student": supernet.whole}, objective, taught_by, material)
        share = supernet.parameters(supernet.whole) / teacher.parameters(teacher.whole)
        return f"{trained}, a student of {100 * share:.0f}% of the teacher's parameters{words}"

    def _objective(self, context: "Context") -> ObjectiveSettings:
        """The stage's or the recipe's, with a matching for two architectures."""
        objective = context.recipe.objective_of(self)
        return objective if objective.matching else objective.model_copy(update={"matching": "emb+skip"})

    def _student(self, context: "Context", teacher: Any) -> tuple[Any, bool]:
        """The student before training, and whether it came with weights of its own."""
        from compressor import models
        from compressor.students import load_masked_language_model, new_student, student_config

        masked = self.corpus is not None and self._objective(context).labels > 0
        if not isinstance(self.student, str):
            return new_student(student_config(self.student, teacher.model.config), masked), False
        if masked:
            return load_masked_language_model(self.student), True
        return models.load_model(self.student, context.data.task)[0], True

    def _layers(self, teacher: int, student: Any) -> tuple[int, ...]:
        from compressor.students import layers_of

        if self.init_layers == "none":
            return ()
        if self.init_layers == "spaced":
            return layers_of(teacher, student.config.num_hidden_layers)
        return tuple(int(layer) for layer in self.init_layers)

    def _material(self, context: "Context") -> Any:
        from compressor.data import open_corpus
        from compressor.stages.learning import Material
        from compressor.tasks import MaskedWords
        from compressor.training import Stream

        assert self.corpus is not None and self.max_steps is not None  # the recipe was checked
        masked = self._objective(context).labels > 0
        texts, steps = open_corpus(self.corpus, context.recipe.seed), self.max_steps

        def stream(multiple: int) -> Stream:
            return Stream(
                texts,
                context.data.tokenizer,
                steps=steps,
                batch_size=self.batch_size,
                max_length=context.recipe.data.max_length,
                seed=context.recipe.seed,
                masked=masked,
                multiple=multiple,
            )

        return Material(stream, MaskedWords(), "a corpus", trains_head=masked)
