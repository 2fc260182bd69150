"""What is tuned: which keys of a recipe, by which values, for which figure. Imports no torch and no NNI."""

import csv
import io
import json
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from compressor.errors import CompressorError
from compressor.files import read_json, write_json, write_text
from compressor.recipe import Recipe, apply_override, check_recipe, read_recipe, read_yaml
from compressor.stages import STAGES
from compressor.stages.base import FamilyTrainingStage

# What chooses between values is held out of the training data; the validation data is not looked at.
HELD_OUT = 0.2
# Looks at the sizes while a stage trains; the assessor stops a trial by these.
_TIMES = 4
# Where a trial that fails leaves what went wrong.
ERROR_FILE = "error.txt"
# With how many numbers NNI describes each.
_TYPES = {"choice": 1, "randint": 2, "uniform": 2, "loguniform": 2, "quniform": 3, "qloguniform": 3}


@dataclass(frozen=True)
class Plan:
    """All that a trial needs to know, beside its values.

    Attributes:
        recipe: bundled name or path.
        overrides: that all trials have, as on a command line.
        sizes: whose scores are averaged, or None for all.
        best: take the best one's score instead of the mean.
        folder: of the trials' runs.
        directory: that relative paths in the recipe start from.
    """

    recipe: str
    overrides: tuple[str, ...]
    folder: str
    directory: str
    sizes: tuple[str, ...] | None = None
    best: bool = False

    def write(self, path: Path) -> None:
        """As JSON."""
        write_json(path, asdict(self))

    @classmethod
    def read(cls, path: Path) -> "Plan":
        """What `write` wrote."""
        value = read_json(path)
        sizes = value.pop("sizes")
        return cls(**value | {"overrides": tuple(value["overrides"])}, sizes=tuple(sizes) if sizes else None)

    def score(self, found: Mapping[str, float]) -> float:
        """The figure that is tuned for, of the scores of sizes."""
        scores = [found[name] for name in self.sizes or found]
        return max(scores) if self.best else sum(scores) / len(scores)


def read_space(path: Path) -> dict[str, dict[str, Any]]:
    """A search space in NNI's form: `key.path: {_type: loguniform, _value: [1.0e-5, 1.0e-3]}`; a list is a choice.

    Raises:
        CompressorError: it cannot be read, or a type or its values are not NNI's.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CompressorError(f"--space: {path} cannot be read: {error}") from error
    space = {}
    for key, given in read_yaml(text, str(path)).items():
        spec = {"_type": "choice", "_value": given} if isinstance(given, list) else given
        _check_parameter(f"{path}: {key}", spec)
        space[key] = spec
    if not space:
        raise CompressorError(f"--space: {path} names no key of the recipe")
    return space


def _check_parameter(where: str, spec: Any) -> None:
    if not isinstance(spec, dict) or set(spec) != {"_type", "_value"}:
        raise CompressorError(f"{where}: give a list of values, or _type and _value")
    kind, value = spec["_type"], spec["_value"]
    if kind not in _TYPES:
        raise CompressorError(f"{where}: _type {kind!r} is none of {', '.join(_TYPES)}")
    if not isinstance(value, list) or not value or (kind != "choice" and len(value) != _TYPES[kind]):
        wanted = "a list of values" if kind == "choice" else f"a list of {_TYPES[kind]} numbers"
        raise CompressorError(f"{where}: _value {value!r}; {kind} needs {wanted}")


def overrides_of(values: Mapping[str, Any]) -> list[str]:
    """Values of keys as they are written on a command line."""
    return [f"{key}={json.dumps(value)}" for key, value in values.items()]


def trial_recipe(plan: Plan, values: Mapping[str, Any]) -> Recipe:
    """The recipe of a trial: what trains, with some of the training data held out to score by.

    Raises:
        CompressorError: no stage trains a family, or the values do not fit the recipe.
    """
    value = read_recipe(plan.recipe)
    for override in (*plan.overrides, *overrides_of(values)):
        apply_override(value, override)
    stages = [stage for stage in value.get("stages", []) if _trains(stage)]
    last = max((place for place, stage in enumerate(stages) if _trains_family(stage)), default=None)
    if last is None:
        raise CompressorError(f"recipe {plan.recipe}: no stage trains a family, which is what is tuned")
    stages[last] = {**stages[last], "monitor": {"times": _TIMES, "keep": "last"}}
    data = value.get("data", {})
    held_out = data if data.get("selection") else {**data, "selection": HELD_OUT}
    return check_recipe({**value, "data": held_out, "stages": stages[: last + 1], "tracking": None}, plan.recipe)


def _trains(stage: Any) -> bool:
    kind = STAGES.get(stage.get("type"))
    # What is no stage is kept, for the recipe's own check to name it.
    return kind is None or (kind.checkpoint and kind.model_fields["type"].default != "prune_vocabulary")


def _trains_family(stage: Any) -> bool:
    kind = STAGES.get(stage.get("type"))
    return kind is not None and issubclass(kind, FamilyTrainingStage)


@dataclass(frozen=True)
class Trial:
    """One trial.

    Attributes:
        status: as NNI calls it: SUCCEEDED, FAILED, EARLY_STOPPED, USER_CANCELED, LOST (ended well, and told no value).
        value: the figure that is tuned for; None where none was told.
    """

    number: int
    status: str
    value: float | None
    seconds: float
    values: dict[str, Any]


def write_csv(trials: Iterable[Trial], path: Path) -> None:
    """A row a trial."""
    trials = list(trials)
    keys = list(dict.fromkeys(key for trial in trials for key in trial.values))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", "status", "value", "seconds", *keys])
    for trial in trials:
        figures = [trial.number, trial.status, "" if trial.value is None else trial.value, round(trial.seconds, 1)]
        writer.writerow([*figures, *(trial.values.get(key, "") for key in keys)])
    write_text(path, text.getvalue())


def best_of(trials: Iterable[Trial], folder: Path) -> Trial:
    """The trial that ended well with the highest value.

    Args:
        folder: of the trials' runs.

    Raises:
        CompressorError: none did.
    """
    trials = list(trials)
    whole = [trial for trial in trials if trial.status == "SUCCEEDED" and trial.value is not None]
    if not whole:
        ends = ", ".join(sorted({trial.status.lower() for trial in trials})) or "none was started"
        raise CompressorError(f"no trial ended with a value ({ends}){_first_error(folder)}")
    return max(whole, key=lambda trial: trial.value or 0.0)


def _first_error(folder: Path) -> str:
    """What a trial that failed said last."""
    for file in sorted(folder.glob(f"*/{ERROR_FILE}")):
        return f"; {file}: {file.read_text(encoding='utf-8').strip()}"
    return ""


def command_of(plan: Plan, trial: Trial) -> str:
    """A command that can be pasted: the whole recipe with a trial's values."""
    return " ".join(map(shlex.quote, ["compressor", "run", plan.recipe, *overrides_of(trial.values)]))
