"""The pieces of a recipe that more than one stage uses, and the base class of all of them."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Multiplier = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1)]


class Settings(BaseModel):
    """A part of a recipe: unknown keys are an error, values do not change once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class StateLists(Settings):
    """Hidden states of teacher and student that are compared, pair by pair; 0 is the output of the embeddings."""

    teacher: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]
    student: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _are_pairs(self) -> "StateLists":
        if len(self.teacher) != len(self.student):
            raise ValueError(
                f"teacher names {len(self.teacher)} states and student {len(self.student)}; they are pairs"
            )
        for states in (self.teacher, self.student):
            if list(states) != sorted(set(states)):
                raise ValueError(f"{list(states)} must ascend")
        return self


class ObjectiveSettings(Settings):
    """What a sub-network is trained towards: the weight of each term; 0 leaves the term out.

    Plain DynaBERT is `{logits: 1.0, hidden_mse: 0.1}`, CKD replaces `hidden_mse` by relations: pairs (as cosines, or as
    distances) and angles, of words and of layers. `window` is the word angle's; `temperature` divides logits,
    `relation_temperature` the cosines of pairs. `matching` says which states are compared; without it a sub-network's
    are, each with that of the layer it keeps, and another architecture's by `emb+skip`.
    """

    logits: Weight = 0.0
    labels: Weight = 0.0
    hidden_mse: Weight = 0.0
    word_pair: Weight = 0.0
    word_distance: Weight = 0.0
    word_angle: Weight = 0.0
    layer_pair: Weight = 0.0
    layer_distance: Weight = 0.0
    layer_angle: Weight = 0.0
    temperature: Annotated[float, Field(gt=0)] = 1.0
    relation_temperature: Annotated[float, Field(gt=0)] = 1.0
    window: Annotated[int, Field(ge=3)] | None = None
    normalization: Literal["valid", "per_row", "reference"] = "valid"
    distance_penalty: Literal["l1", "l2", "smooth_l1"] = "smooth_l1"
    angle_penalty: Literal["l1", "l2", "smooth_l1"] = "l2"
    matching: Annotated[str, Field(pattern=r"^(emb\+skip|skip|final|last-[1-9][0-9]*)$")] | StateLists | None = None

    RELATIONS: ClassVar[tuple[str, ...]] = (
        "word_pair",
        "word_distance",
        "word_angle",
        "layer_pair",
        "layer_distance",
        "layer_angle",
    )

    @property
    def terms(self) -> tuple[str, ...]:
        """Names of the terms that have a weight."""
        names = ("labels", "logits", "hidden_mse", *self.RELATIONS)
        return tuple(name for name in names if getattr(self, name))

    @property
    def uses_states(self) -> bool:
        """Whether hidden states are needed at all."""
        return self.hidden_mse > 0 or bool(self.relations)

    @property
    def uses_teacher(self) -> bool:
        """Whether a teacher is needed at all."""
        return self.logits > 0 or self.uses_states

    @property
    def relations(self) -> tuple[str, ...]:
        """Names of the relations that have a weight."""
        return tuple(name for name in self.RELATIONS if getattr(self, name))

    @model_validator(mode="after")
    def _asks_for_something(self) -> "ObjectiveSettings":
        if not self.terms:
            raise ValueError("every weight is 0; give at least logits, labels or hidden_mse a weight")
        if self.window is not None and self.window % 2 == 0:
            raise ValueError(f"window is {self.window}; an odd number is needed: the word and as many on each side")
        return self


class NewStudent(Settings):
    """An encoder of the teacher's architecture with a vocabulary as large, and any other shape."""

    layers: Count
    hidden: Count
    heads: Count
    intermediate: Count


class FileCorpus(Settings):
    """Texts without labels in local files (txt: one a line; tsv, csv, jsonl, parquet: a column), read as they go by."""

    files: str | Annotated[tuple[str, ...], Field(min_length=1)]
    text: str = "text"

    @property
    def patterns(self) -> tuple[str, ...]:
        """Paths or patterns of the files."""
        return (self.files,) if isinstance(self.files, str) else self.files


class HubSource(Settings):
    """A data set of the Hugging Face hub."""

    hub: str
    config: str | None = None
    revision: str | None = None


class HubCorpus(HubSource):
    """Texts without labels in a data set of the Hugging Face hub, read as they go by."""

    split: str = "train"
    text: str = "text"


def _kind_of_corpus(value: Any) -> str:
    return "corpus of the hub" if "hub" in (value if isinstance(value, dict) else vars(value)) else "corpus files"


Corpus = Annotated[
    Annotated[FileCorpus, Tag("corpus files")] | Annotated[HubCorpus, Tag("corpus of the hub")],
    Discriminator(_kind_of_corpus),
]


class MonitorSettings(Settings):
    """Looks at sub-networks while they train, on the rows that `data.selection` holds out of the training data."""

    times: Count = 4
    sizes: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    keep: Literal["best", "last"] = "best"


class CheckpointSettings(Settings):
    """How often a stage saves what it has, and how many of these checkpoints stay until it is done."""

    minutes: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 5.0
    keep: Count = 2


class TrainingSettings(Settings):
    """How long and how fast a stage trains; the defaults are those of DynaBERT's README.

    `batch_size` is of one step, whatever the number of processes that share it. `precision: auto` is bf16 on a
    GPU that computes in it, and fp32 elsewhere.
    """

    epochs: Count = 3
    max_steps: Count | None = None
    batch_size: Count = 32
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 2e-5
    warmup: Fraction = 0.0
    weight_decay: Weight = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    monitor: MonitorSettings | None = None


class FamilyTrainingSettings(TrainingSettings):
    """Training of many sub-networks: `all` at every step, or a `sandwich`: the largest, the smallest, some `drawn`."""

    subnetworks: Literal["all", "sandwich"] = "all"
    drawn: Annotated[int, Field(ge=0)] = 1
