"""What a stage is: settings that a recipe gives, and a `run` that writes one artifact."""

from typing import TYPE_CHECKING, ClassVar

from compressor.settings import FamilyTrainingSettings, Settings, TrainingSettings

if TYPE_CHECKING:
    from compressor.context import Context


class Stage(Settings):
    """One step of a recipe.

    A stage reads what stages before it left and writes into `context.folder`, which becomes
    `OUTPUT/stages/NN-type` once the stage is whole. Heavy imports stand inside `run`: the command line reads
    the settings of every stage without loading torch.

    Class attributes:
        needs: types of stages that must stand before this one.
        precedes: types of stages that must not stand before this one.
        reads: parts of the recipe, beside model, task and training data, that change its result.
        checkpoint: whether it leaves a model.
        resumes: files in `context.partial` (a pattern) that it goes on from if it was cut off.
        everywhere: whether all processes of a run take part; only the main one runs the others.
        delivers: files of the run's folder that it writes besides its artifact; missing ones make it run again.
    """

    type: str

    needs: ClassVar[tuple[str, ...]] = ()
    precedes: ClassVar[tuple[str, ...]] = ()
    reads: ClassVar[frozenset[str]] = frozenset()
    checkpoint: ClassVar[bool] = False
    resumes: ClassVar[str] = ""
    everywhere: ClassVar[bool] = False
    delivers: ClassVar[tuple[str, ...]] = ()

    def check(self, context: "Context", path: str) -> None:
        """Look, before anything runs, for what the recipe alone does not show; `path` is the stage's in the recipe.

        Raises:
            CompressorError: the stage cannot do its work with this model or data.
        """

    def run(self, context: "Context") -> str:
        """Do the work; the returned words are shown when it is done."""
        raise NotImplementedError


class TrainingStage(Stage, TrainingSettings):
    """A stage that trains and leaves a model."""

    checkpoint: ClassVar[bool] = True
    resumes: ClassVar[str] = "step-*.pt"
    everywhere: ClassVar[bool] = True


class FamilyTrainingStage(TrainingStage, FamilyTrainingSettings):
    """A stage that trains the sizes of a family together."""
