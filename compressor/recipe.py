"""The recipe: its schema, loading it from YAML with overrides, and errors that say what would be right."""

from collections.abc import Iterable, Iterator
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import Discriminator, Field, Tag, ValidationError, field_validator

from compressor.errors import CompressorError, nearest, one_line
from compressor.settings import (
    CheckpointSettings,
    Count,
    FileCorpus,
    Fraction,
    HubCorpus,
    HubSource,
    Multiplier,
    NewStudent,
    ObjectiveSettings,
    Settings,
)
from compressor.stages import STAGES, AnyStage, Stage
from compressor.stages.distill import Distill
from compressor.supernet.subnetworks import size_name


class ScratchModel(Settings):
    """A BERT with random weights and a vocabulary made of the training data: for trials without a download."""

    type: Literal["bert"] = "bert"
    layers: Count = 4
    heads: Count = 4
    hidden: Count = 64
    intermediate: Count = 256
    max_positions: Count = 64
    dropout: Fraction = 0.1


class ClassificationSettings(Settings):
    """One of several labels for a text or a pair of texts."""

    type: Literal["text-classification"]
    metric: Literal["accuracy", "f1", "matthews"] = "accuracy"


class RegressionSettings(Settings):
    """One number for a text or a pair of texts."""

    type: Literal["text-regression"]
    metric: Literal["spearman", "pearson"] = "spearman"


class _Columns(Settings):
    """Which columns hold what, and how much of them is used."""

    text: str = "sentence"
    text_pair: str | None = None
    label: str | None = "label"
    max_length: Annotated[int, Field(ge=3)] = 128
    train_limit: Count | None = None
    selection: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @property
    def more_texts(self) -> str | None:
        """The key path of texts without labels, if there are any."""
        for key in ("unlabelled", "unlabelled_split"):
            if getattr(self, key, None):
                return f"data.{key}"
        return None


class FileData(_Columns):
    """Local files: tsv (nothing is quoted, as in GLUE), csv, jsonl, parquet.

    `unlabelled` holds more texts to distil on, in the same columns but for the label.
    """

    train: str
    validation: str
    unlabelled: str | None = None


class HubData(HubSource, _Columns):
    """A data set of the Hugging Face hub, or a local folder that `datasets.load_dataset` reads."""

    train_split: str = "train"
    validation_split: str = "validation"
    unlabelled_split: str | None = None


class GeneratedData(_Columns):
    """Sentences that the project makes itself (`compressor.generator`)."""

    generator: Literal["statements"]
    train: Count = 4000
    validation: Count = 1000
    generator_seed: int = 0


class FamilySettings(Settings):
    """The sizes: every width at every depth, as multipliers of heads and neurons, and of layers."""

    widths: Annotated[tuple[Multiplier, ...], Field(min_length=1)] = (1.0, 0.75, 0.5, 0.25)
    depths: Annotated[tuple[Multiplier, ...], Field(min_length=1)] = (1.0, 0.75, 0.5)
    depth_rule: Literal["paper", "reference"] = "paper"

    @field_validator("widths", "depths")
    @classmethod
    def _are_different(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        # Names of sizes have two decimals.
        if len({f"{value:.2f}" for value in values}) < len(values):
            raise ValueError(f"{list(values)} names a multiplier twice (two decimals count)")
        return tuple(sorted(values, reverse=True))


def _kind_of_model(value: Any) -> str:
    return "folder or hub id" if isinstance(value, str) else "new model"


def _kind_of_data(value: Any) -> str:
    """Which form a `data:` section has, by the key that names its source."""
    keys = value if isinstance(value, dict) else getattr(value, "model_fields_set", ())
    return "data of the hub" if "hub" in keys else "generated data" if "generator" in keys else "data files"


class Recipe(Settings):
    """Everything that a run does, as one YAML file says it."""

    version: Literal[1] = 1
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    model: Annotated[
        Annotated[str, Tag("folder or hub id")] | Annotated[ScratchModel, Tag("new model")],
        Discriminator(_kind_of_model),
    ]
    task: Annotated[ClassificationSettings | RegressionSettings, Field(discriminator="type")]
    data: Annotated[
        Annotated[FileData, Tag("data files")]
        | Annotated[HubData, Tag("data of the hub")]
        | Annotated[GeneratedData, Tag("generated data")],
        Discriminator(_kind_of_data),
    ]
    family: FamilySettings = FamilySettings()
    checkpoints: CheckpointSettings = CheckpointSettings()
    tracking: Literal["tensorboard", "wandb", "mlflow"] | None = None
    objective: ObjectiveSettings = ObjectiveSettings(
        logits=1.0, word_pair=1.0, word_angle=10.0, layer_pair=1.0, layer_angle=10.0
    )
    stages: Annotated[tuple[AnyStage, ...], Field(min_length=1)]

    def objective_of(self, stage: Any) -> ObjectiveSettings:
        """A stage's own objective, or the recipe's."""
        return stage.objective or self.objective

    def to_yaml(self) -> str:
        """The resolved recipe, which loads back to an equal one."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


# Names that pydantic puts into the path of an error where the schema has a choice; none of them is a key there.
_CHOICES: dict[str, type[Settings]] = {
    **STAGES,
    "data files": FileData,
    "data of the hub": HubData,
    "generated data": GeneratedData,
    "new model": ScratchModel,
    "new student": NewStudent,
    "corpus files": FileCorpus,
    "corpus of the hub": HubCorpus,
    "text-classification": ClassificationSettings,
    "text-regression": RegressionSettings,
}


def load_recipe(name: str, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe by bundled name or path, change it by overrides, and check it whole.

    Args:
        name: `sst2`, or the path of a YAML file.
        overrides: `key.path=value` with the value in YAML; a stage is named by its type or its place:
            `stages.width.epochs=1`.

    Raises:
        CompressorError: listing every mistake with its key path, what is allowed and the nearest match.
    """
    value = read_recipe(name)
    for override in overrides:
        apply_override(value, override)
    return check_recipe(value, name)


def read_recipe(name: str) -> dict[str, Any]:
    """A recipe by bundled name or path as it stands there, not checked.

    Raises:
        CompressorError: there is none, or it is no YAML.
    """
    return read_yaml(_find(name), name)


def check_recipe(value: dict[str, Any], name: str) -> Recipe:
    """Validate a recipe that was read already; see `load_recipe`."""
    try:
        recipe = Recipe.model_validate(value)
    except ValidationError as error:
        lines = [_explain(item, value) for item in error.errors()]
        raise CompressorError(_listed(name, lines)) from error
    problems = list(dict.fromkeys(_cross_check(recipe)))
    if problems:
        raise CompressorError(_listed(name, problems))
    return recipe


def with_stage(value: dict[str, Any], stage: dict[str, Any], before: str) -> dict[str, Any]:
    """A recipe that was read, with one more stage in front of another; one of its type that is there is replaced."""
    stages = [one for one in value["stages"] if one["type"] != stage["type"]]
    place = next((place for place, one in enumerate(stages) if one["type"] == before), len(stages))
    return {**value, "stages": [*stages[:place], stage, *stages[place:]]}


def bundled() -> dict[str, str]:
    """Names of the recipes that come with the package, and their first comments."""
    found = {}
    for file in resources.files("compressor.recipes").iterdir():
        if file.name.endswith(".yaml"):
            comments = [line for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
            found[file.name.removesuffix(".yaml")] = "\n".join(line.lstrip("# ") for line in comments[:2])
    return dict(sorted(found.items()))


def _listed(name: str, lines: list[str]) -> str:
    if len(lines) == 1:
        return f"recipe {name}: {lines[0]}"
    return f"recipe {name} has {len(lines)} mistakes:\n" + "\n".join(f"  {line}" for line in lines)


def _find(name: str) -> str:
    """The text of a recipe."""
    if name.endswith((".yaml", ".yml")) or Path(name).is_file():
        try:
            return Path(name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CompressorError(f"recipe {name} cannot be read: {error}") from error
    if name not in bundled():
        raise CompressorError(f"there is no recipe {name!r}{nearest(name, bundled())} (or a path that ends in .yaml)")
    return (resources.files("compressor.recipes") / f"{name}.yaml").read_text(encoding="utf-8")


class _Loader(yaml.SafeLoader):
    """Plain YAML that refuses a key given twice: the last one would win in silence."""


def _unique_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [loader.construct_object(key) for key, _ in node.value]
    twice = next((key for place, key in enumerate(keys) if key in keys[:place]), None)
    if twice is not None:
        raise yaml.constructor.ConstructorError(None, None, f"the key {twice!r} stands twice", node.start_mark)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)


def read_yaml(text: str, name: str) -> dict[str, Any]:
    """A YAML mapping.

    Raises:
        CompressorError: with line and column of what is no YAML.
    """
    try:
        value = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise CompressorError(f"recipe {name}: {one_line(error)}") from error
    if not isinstance(value, dict):
        raise CompressorError(
            f"recipe {name}: a mapping is needed (model:, task:, data:, stages:), not {type(value).__name__}"
        )
    return value


def apply_override(value: dict[str, Any], override: str) -> None:
    """Change a recipe that was read by `key.path=value`, in place; see `load_recipe`.

    Raises:
        CompressorError: it is no override, or names no place in the recipe.
    """
    path, separator, text = override.partition("=")
    if not separator or not path:
        raise CompressorError(f"override {override!r}: key=value is needed, for example seed=1")
    try:
        new = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise CompressorError(f"override {override!r}: the value is no YAML: {one_line(error)}") from error
    *parents, last = path.split(".")
    here: Any = value
    for depth, key in enumerate(parents):
        here = _descend(here, key, ".".join(parents[: depth + 1]))
    if isinstance(here, list):
        here[_place(here, last, path)] = new
    elif isinstance(here, dict):
        here[last] = new
    else:
        raise CompressorError(f"override {path}: {'.'.join(parents)} is {here!r} and has no keys; override it whole")


def _descend(here: Any, key: str, path: str) -> Any:
    if isinstance(here, list):
        return here[_place(here, key, path)]
    if isinstance(here, dict):
        if here.get(key) is None:
            here[key] = {}
        return here[key]
    raise CompressorError(f"override {path}: what stands above it is {here!r} and has no keys; override it whole")


def _place(stages: list[Any], key: str, path: str) -> int:
    """Index of a stage that is named by its type or its place."""
    types = [str(stage.get("type")) if isinstance(stage, dict) else "?" for stage in stages]
    if key in types:
        return types.index(key)
    if key.isdecimal() and int(key) < len(stages):
        return int(key)
    raise CompressorError(f"override {path}: the recipe has no stage {key!r}{nearest(key, types)}")


def _explain(error: Any, value: dict[str, Any]) -> str:
    """One line for one of pydantic's errors."""
    path, kind, context = _path(error["loc"], value), error["type"], error.get("ctx", {})
    last = str(error["loc"][-1]) if error["loc"] else ""
    if kind == "extra_forbidden":
        return f"{path}: unknown key{nearest(last, _keys_at(error['loc'][:-1]))}"
    if kind == "union_tag_invalid":
        allowed = [tag.strip("' ") for tag in context["expected_tags"].split(",")]
        return f"{path}.type: {context['tag']!r} is not known{nearest(context['tag'], allowed)}"
    if kind == "union_tag_not_found":
        return f"{path}: a `type` is missing"
    if kind == "literal_error":
        allowed = context["expected"].replace(" or ", ", ").replace("'", "").split(", ")
        return f"{path}: {error['input']!r} is not allowed{nearest(error['input'], allowed)}"
    if kind == "missing":
        return f"{path}: missing"
    if kind == "value_error":
        return f"{path}: {error['msg'].removeprefix('Value error, ')}"
    return f"{path}: {error['msg'][0].lower()}{error['msg'][1:]}, not {error['input']!r}"


def _path(location: tuple[Any, ...], value: Any) -> str:
    """`stages[2] (width).objective.logits`: the path as it stands in the file, stages named by their type."""
    text = ""
    for part in location:
        if isinstance(part, int):
            value = value[part] if isinstance(value, list) and part < len(value) else None
            kind = value.get("type") if isinstance(value, dict) else None
            text += f"[{part}]" + (f" ({kind})" if kind in STAGES else "")
        elif isinstance(value, dict) and part in value:
            text, value = f"{text}.{part}", value[part]
        elif part not in _CHOICES and part != "folder or hub id":
            text = f"{text}.{part}"
    return text.lstrip(".") or "recipe"


def _keys_at(location: tuple[Any, ...]) -> list[str]:
    """Keys that the schema allows at a place."""
    schema: type[Settings] = Recipe
    for part in location:
        if part in _CHOICES:
            schema = _CHOICES[part]
        elif part in schema.model_fields:
            inner = list(_settings_in(schema.model_fields[part].annotation))
            schema = inner[0] if inner else schema
    return list(schema.model_fields)


def _settings_in(annotation: Any) -> Iterator[type[Settings]]:
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        yield annotation
    for argument in get_args(annotation):
        yield from _settings_in(argument)


def _cross_check(recipe: Recipe) -> Iterator[str]:
    """What each part allows but the whole does not."""
    types: list[str] = [stage.type for stage in recipe.stages]
    for place, stage in enumerate(recipe.stages):
        yield from _check_order(place, stage, types)
        yield from _check_labels(place, stage, recipe)
        yield from _check_objective(place, stage, recipe)
        yield from _check_corpus(place, stage, recipe, types)
        yield from _check_monitor(place, stage, recipe)
    if "export" in types:
        for key, multipliers in (("width", recipe.family.widths), ("depth", recipe.family.depths)):
            if min(multipliers) < 1 and key not in types:
                yield (
                    f"family.{key}s: {min(multipliers)} is asked for, and no {key} stage trains it; "
                    f"add one before export or set family.{key}s to [1.0]"
                )


def _check_order(place: int, stage: Stage, types: list[str]) -> Iterator[str]:
    path = f"stages[{place}] ({stage.type})"
    before = types[:place]
    if stage.type in before:
        yield f"{path}: stands twice, at {before.index(stage.type)} already"
    for needed in stage.needs:
        if needed not in before:
            article = "an" if needed[0] in "aeiou" else "a"
            yield f"{path}: {stage.type} needs {article} {needed} stage before it"
    for later in stage.precedes:
        if later in before:
            yield f"{path}: {stage.type} must stand before {later}, which is at {types.index(later)}"


def _check_labels(place: int, stage: Stage, recipe: Recipe) -> Iterator[str]:
    path = f"stages[{place}] ({stage.type})"
    unlabelled = recipe.data.label is None
    if unlabelled and stage.type in ("finetune", "finetune_family"):
        yield f"{path}: {stage.type} learns from labels, and data.label is null; name the column or leave the stage out"
    if "objective" in stage.reads and recipe.objective_of(stage).labels:
        if unlabelled:
            yield f"{path}: the objective weighs labels, and data.label is null"
        elif recipe.data.more_texts:
            yield f"{path}: the objective weighs labels, and the texts of {recipe.data.more_texts} have none"


def _check_objective(place: int, stage: Stage, recipe: Recipe) -> Iterator[str]:
    """Whether something tells the classifier where the states are."""
    if "objective" not in stage.reads or getattr(stage, "corpus", None):
        return
    objective = recipe.objective_of(stage)
    if objective.relations and not (objective.logits or objective.labels):
        path = f"stages[{place}] ({stage.type}).objective" if objective is not recipe.objective else "objective"
        yield (
            f"{path}: {', '.join(objective.relations)} without logits or labels: relations do not change when all "
            "states are turned or moved, so nothing would tell the classifier where they are; add logits or labels"
        )


def _check_corpus(place: int, stage: Stage, recipe: Recipe, types: list[str]) -> Iterator[str]:
    """A corpus teaches an encoder without a task."""
    if not isinstance(stage, Distill) or stage.corpus is None:
        return
    path = f"stages[{place}] ({stage.type})"
    if stage.max_steps is None:
        yield f"{path}.max_steps: missing; a corpus is read as it goes by, so its steps are not counted beforehand"
    if recipe.objective_of(stage).logits:
        yield f"{path}: the objective weighs logits, and texts of a corpus have no task; set logits to 0"
    if "finetune" in types[:place]:
        yield f"{path}: a corpus teaches an encoder without a task; put finetune behind distill, or leave corpus out"
    if isinstance(recipe.model, ScratchModel):
        yield f"{path}: the model is a new one, and there is nothing in it to distil; give a folder or hub id"
    if stage.monitor:
        yield f"{path}.monitor: a corpus has no rows to look at"


def _check_monitor(place: int, stage: Stage, recipe: Recipe) -> Iterator[str]:
    monitor, path = getattr(stage, "monitor", None), f"stages[{place}] ({stage.type}).monitor"
    if monitor is None:
        return
    if not recipe.data.selection:
        yield (
            f"{path}: there are no rows to look at; data.selection=0.1 holds a tenth "
            "of the training rows out (the validation data is for the final figures alone)"
        )
    trained = _trained_sizes(stage, recipe.family)
    for name in monitor.sizes or ():
        if name not in trained:
            yield f"{path}.sizes: {name!r} is not trained{nearest(name, trained)}"


def _trained_sizes(stage: Stage, family: FamilySettings) -> list[str]:
    """Names of the sub-networks that a stage trains."""
    alone = {"finetune": "teacher", "distill": "student"}
    if stage.type in alone:
        return [alone[stage.type]]
    depths = (1.0,) if stage.type == "width" else family.depths
    return [size_name(width, depth) for depth in depths for width in family.widths]
