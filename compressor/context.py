"""What a stage is given: the recipe, the data, the checkpoints of the stages before it, and a folder to write into."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from compressor import models
from compressor.data import Table, encode_labels, read, task_of, tokenise
from compressor.errors import CompressorError
from compressor.files import read_json
from compressor.interruption import Interruption
from compressor.processes import Processes
from compressor.progress import Progress
from compressor.recipe import FileData, Recipe, ScratchModel
from compressor.students import family_config
from compressor.supernet.architectures import Dimensions, dimensions_of
from compressor.supernet.subnetworks import Subnetwork, grid, size_name
from compressor.supernet.supernetwork import SuperNetwork
from compressor.tasks import Array, Task
from compressor.training import Batches, Listener, check_tracking


@dataclass(frozen=True)
class Data:
    """The data of a run, tokenised.

    Attributes:
        selection: the part of the training rows that no stage trains on: checkpoints are chosen by it.
        unlabelled: more texts to distil on; their rows are numbered on behind those of the training data.
    """

    task: Task
    tokenizer: Any
    train: datasets.Dataset
    validation: datasets.Dataset
    selection: datasets.Dataset | None = None
    unlabelled: datasets.Dataset | None = None

    @property
    def labelled(self) -> bool:
        """Whether the training rows carry labels."""
        return "labels" in self.train.column_names

    @property
    def texts(self) -> datasets.Dataset:
        """What is distilled on: the training rows, and the unlabelled ones if there are any."""
        if self.unlabelled is None:
            return self.train
        train = self.train.remove_columns("labels") if self.labelled else self.train
        return datasets.concatenate_datasets([train, self.unlabelled])

    def labels(self, rows: datasets.Dataset) -> Array | None:
        """Labels of rows as an array [N]; None where there are none."""
        return np.asarray(rows["labels"][:]) if "labels" in rows.column_names else None

    def batches(self, rows: datasets.Dataset, batch_size: int, seed: int | None = None, multiple: int = 1) -> Batches:
        """Rows in batches; in a drawn order, similar lengths together, if a seed is given."""
        return Batches(rows, self.task, self.tokenizer, batch_size, seed, multiple)


@dataclass
class Context:
    """The surroundings of a run; the engine sets `folder` before each stage.

    Attributes:
        recipe: the resolved recipe.
        output: the run's folder.
        listeners: are given every line that training stages write of themselves.
        folder: the running stage's own, not yet under its final name; the main process alone writes there.
        partial: what the running stage goes on from if it is cut off: its checkpoints and metrics.
        finished: folders of the finished stages by type, in their order.
        checkpoints: those of them that hold a model.
        progress: where long work is shown.
    """

    recipe: Recipe
    output: Path
    progress: Progress
    processes: Processes
    interruption: Interruption = field(default_factory=Interruption)
    listeners: Sequence[Listener] = ()
    folder: Path = Path()
    partial: Path = Path()
    finished: dict[str, Path] = field(default_factory=dict)
    checkpoints: dict[str, Path] = field(default_factory=dict)

    @property
    def family_folder(self) -> Path:
        """Where the shipped family lies."""
        return self.output / "family"

    def check(self) -> None:
        """Read model configuration, data and tokenizer.

        Raises:
            CompressorError: any of them cannot be used, two sizes of the family would be the same, or a stage cannot do
                its work with them.
        """
        self.sizes(self.dimensions)
        for place, stage in enumerate(self.recipe.stages):
            stage.check(self, f"stages[{place}] ({stage.type})")
        if self.recipe.tracking:
            check_tracking(self.recipe.tracking)
        _ = self.data

    @cached_property
    def source_config(self) -> Any:
        """The configuration of the recipe's model."""
        return models.load_config(self.recipe.model)

    @cached_property
    def config(self) -> Any:
        """That of the model that the family is cut from: the recipe's, or the student that a stage distils it into."""
        return family_config(self.recipe, self.source_config)

    @property
    def dimensions(self) -> Dimensions:
        """Of the model that the family is cut from."""
        return dimensions_of(self.config)

    @cached_property
    def data(self) -> Data:
        """Data and tokenizer, read once a run."""
        return self._data(None)

    @cached_property
    def shipped_data(self) -> Data:
        """The data as the family's own tokenizer cuts it: another than in training if the vocabulary was pruned."""
        pruned = self.checkpoints.get("prune_vocabulary")
        return self.cut_by(models.load_tokenizer(pruned)) if pruned else self.data

    def cut_by(self, tokenizer: Any) -> Data:
        """The data, row by row, as another tokenizer cuts it."""
        return self._data(tokenizer)

    def _data(self, tokenizer: Any | None) -> Data:
        recipe = self.recipe
        longest = min(models.longest_input(self.source_config), models.longest_input(self.config))
        if recipe.data.max_length > longest:
            raise CompressorError(
                f"data.max_length: {recipe.data.max_length} is more than the {longest} tokens that the model can read"
            )
        train = read(recipe.data, "train", recipe.seed)
        validation = read(recipe.data, "validation", recipe.seed)
        task = task_of(recipe.task, train, models.trained_labels(self.source_config))
        tokenizer = tokenizer or self._tokenizer(train)
        tables = (tokenise(t, encode_labels(task, t), tokenizer, recipe.data.max_length) for t in (train, validation))
        rows, validation_rows = tables
        unlabelled = self._unlabelled(tokenizer, behind=max(train.column("row")))
        if not recipe.data.selection:
            return Data(task, tokenizer, rows, validation_rows, unlabelled=unlabelled)
        if len(rows) * (1 - recipe.data.selection) < 1:
            raise CompressorError(
                f"data.selection: {recipe.data.selection} of {len(rows)} training rows leaves none to train on"
            )
        parts = rows.train_test_split(test_size=recipe.data.selection, seed=recipe.seed)
        return Data(task, tokenizer, parts["train"], validation_rows, parts["test"], unlabelled)

    def more_rows(self, file: str) -> datasets.Dataset:
        """Rows of another file in the form of the training data, cut as the family cuts them.

        Raises:
            CompressorError: the file cannot be read so.
        """
        if not isinstance(self.recipe.data, FileData):
            raise CompressorError(f"rows: {file} would need data.text and the rest of what files of rows need")
        data = self.shipped_data
        table = read(self.recipe.data.model_copy(update={"validation": file}), "validation", self.recipe.seed)
        return tokenise(table, encode_labels(data.task, table), data.tokenizer, self.recipe.data.max_length)

    def _unlabelled(self, tokenizer: Any, behind: int) -> datasets.Dataset | None:
        if not self.recipe.data.more_texts:
            return None
        table = read(self.recipe.data, "unlabelled", self.recipe.seed)
        return tokenise(table, None, tokenizer, self.recipe.data.max_length, behind)

    def _tokenizer(self, train: Table) -> Any:
        if isinstance(self.recipe.model, ScratchModel):
            return models.new_tokenizer(self.recipe.model, train.column("text"))
        return models.load_tokenizer(self.recipe.model)

    def start_model(self) -> tuple[Any, bool]:
        """The model before it is fine-tuned, and whether its head is trained: the recipe's, or the student of it."""
        if "distill" in self.checkpoints:
            return models.load_model(self.checkpoints["distill"], self.data.task)
        return self._source_model()

    def _source_model(self) -> tuple[Any, bool]:
        source = self.recipe.model
        if isinstance(source, ScratchModel):
            return models.new_model(source, self.data.tokenizer, self.data.task), False
        return models.load_model(source, self.data.task)

    def teacher(self) -> SuperNetwork:
        """The fine-tuned teacher, which sizes are compared with: the recipe's model, fine-tuned if it was not yet.

        Where a student of the pre-trained model was fine-tuned, the student is the teacher of everything behind it.

        Raises:
            CompressorError: nothing was fine-tuned.
        """
        done = list(self.checkpoints)
        if "finetune" in done and done[:2] != ["distill", "finetune"]:
            return self.load(self.checkpoints["finetune"])
        model, trained = self._source_model()
        if trained:
            return SuperNetwork(model)
        if "finetune" in done:
            return self.load(self.checkpoints["finetune"])
        raise CompressorError(
            f"model: {self.recipe.model} has no trained head for this task; put a finetune stage first"
        )

    def trained(self) -> SuperNetwork:
        """The fine-tuned model that the family is cut from: the teacher, or the student that it was distilled into."""
        made = [stage for stage in self.checkpoints if stage in ("finetune", "distill")]
        return self.load(self.checkpoints[made[-1]]) if made else self.teacher()

    def latest(self) -> SuperNetwork:
        """The super-network as the last finished stage left it; the teacher before any."""
        if not self.checkpoints:
            return self.teacher()
        return self.load(list(self.checkpoints.values())[-1])

    def load(self, checkpoint: Path) -> SuperNetwork:
        """The model of a finished stage.

        Raises:
            CompressorError: its head was never trained.
        """
        model, trained = models.load_model(checkpoint, self.data.task)
        if not trained:
            raise CompressorError(f"{checkpoint.name} left an encoder without a head; put a finetune stage behind it")
        return SuperNetwork(model)

    def save(self, model: Any) -> None:
        """Write a model and its tokenizer into the stage's folder; other processes than the main one write nothing."""
        if self.processes.main:
            models.save(model, self.data.tokenizer, self.folder)

    @property
    def multipliers(self) -> dict[str, tuple[float, float]]:
        """Width and depth multiplier of each size, by name."""
        family = self.recipe.family
        return {size_name(width, depth): (width, depth) for depth in family.depths for width in family.widths}

    def sizes(self, dimensions: Dimensions) -> dict[str, Subnetwork]:
        """The recipe's family, the largest first: what is trained."""
        family = self.recipe.family
        return grid(dimensions, family.widths, family.depths, family.depth_rule)

    def shipped_sizes(self, dimensions: Dimensions) -> dict[str, Subnetwork]:
        """The recipe's family, and behind it what a search found."""
        sizes = self.sizes(dimensions)
        if "search" in self.finished:
            for name, found in read_json(self.finished["search"] / "sizes.json")["sizes"].items():
                sizes[name] = Subnetwork(*(tuple(found[part]) for part in ("kept", "heads", "neurons")))
        return sizes
