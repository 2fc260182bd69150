"""Tunes a recipe: a plan, NNI's trials, a table, and the best as a command."""

import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from compressor.context import Context
from compressor.errors import CompressorError, nearest
from compressor.files import explained
from compressor.processes import Processes
from compressor.progress import Progress
from compressor.recipe import Recipe
from compressor.search.experiment import Machines, run_experiment
from compressor.search.latency import Conditions, measure
from compressor.search.tuning import (
    Plan,
    Trial,
    best_of,
    command_of,
    read_space,
    trial_recipe,
    write_csv,
)
from compressor.seeds import seed_of
from compressor.supernet.supernetwork import SuperNetwork

ALGORITHMS = ("tpe", "evolution", "random")


def tune(
    recipe: str,
    overrides: Iterable[str],
    space_file: Path,
    output: Path,
    progress: Progress,
    *,
    objective: str = "mean",
    algorithm: str = "tpe",
    trials: int = 20,
    parallel: int = 1,
    machines: Path | None = None,
) -> Trial:
    """Try values of a recipe's keys; the best trial.

    Each trial trains the recipe, up to its last stage that trains a family, with some of the training data held out
    (`data.selection`, 0.2 where the recipe has none), and is scored on that. The validation data is left for the run
    of what was found. A trial whose scores on the way are below the median of the others' is stopped early.

    Args:
        objective: `mean` of the family's metric, the name of a size, or milliseconds (`5ms`): the best metric of the
            sizes that one text of `data.max_length` takes no longer in int8 on one thread here.
        machines: a YAML file of machines that trials run on; None is this one.
        output: a new folder: `trials.csv`, and a run for each trial.

    Raises:
        CompressorError: a mistake in what is asked for, before anything runs; or no trial ended well.
    """
    if algorithm not in ALGORITHMS:
        raise CompressorError(f"--algorithm: {algorithm!r} is none of {', '.join(ALGORITHMS)}")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise CompressorError(f"--output: {output} is not empty; give a new folder")
    space, remote = read_space(space_file), Machines.read(machines) if machines else None
    plan = Plan(recipe, tuple(overrides), str((output / "trials").resolve()), str(Path.cwd()))
    example = trial_recipe(plan, _example(space))
    plan = replace(plan, sizes=_sizes(objective, example), best=objective.endswith("ms"))
    with explained("the trials", output.parent):
        (output / "nni").mkdir(parents=True)
        with progress.task("tune", trials) as shown:
            found = run_experiment(
                plan,
                space,
                (output / "nni").resolve(),
                algorithm=algorithm,
                trials=trials,
                parallel=parallel,
                seed=seed_of(example.seed, "tune") % 2**32,
                advance=shown.advance,
                machines=remote,
            )
        write_csv(found, output / "trials.csv")
    progress.console.print(_table(found))
    best = best_of(found, output / "trials")
    ends = sum(trial.status == "SUCCEEDED" for trial in found)
    progress.say(f"{ends} of {len(found)} trials ended with a value; {output / 'trials.csv'} holds all of them")
    progress.say(f"best, {100 * (best.value or 0):.2f} on held-out training data:")
    # In one line however narrow the terminal is, to be pasted.
    progress.console.print(command_of(plan, best), markup=False, highlight=False, soft_wrap=True)
    return best


def _example(space: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """One value of each key, to see whether the recipe takes them."""
    return {key: spec["_value"][0] for key, spec in space.items()}


def _sizes(objective: str, recipe: Recipe) -> tuple[str, ...] | None:
    """Names of the sizes that count, None for all."""
    # Model and data are read here too, so that mistakes in them are told before any trial starts.
    with tempfile.TemporaryDirectory() as folder:
        context = Context(recipe, Path(folder) / "run", Progress(Console(quiet=True)), Processes())
        context.check()
        grid = context.sizes(context.dimensions)
        if objective == "mean":
            return None
        if objective in grid:
            return (objective,)
        limit = _milliseconds(objective, grid)
        supernet = SuperNetwork(context.start_model()[0])
        names = context.data.tokenizer.model_input_names
        conditions = Conditions("int8", 1, recipe.data.max_length, 1)
        times = measure(supernet, names, list(grid.values()), conditions, Path(folder) / "graphs")
    found = tuple(name for name, size in grid.items() if times[size] <= limit)
    if not found:
        raise CompressorError(
            f"--objective: no size is as fast as {objective}; the fastest takes {min(times.values()):.2f}ms"
        )
    return found


def _milliseconds(objective: str, grid: Iterable[str]) -> float:
    try:
        return float(objective.removesuffix("ms"))
    except ValueError:
        raise CompressorError(
            f"--objective: {objective!r} is not mean, nor milliseconds (5ms), nor a size{nearest(objective, grid)}"
        ) from None


def _table(trials: list[Trial]) -> Table:
    """All trials, the best first."""
    keys = list(dict.fromkeys(key for trial in trials for key in trial.values))
    table = Table("trial", "status", "value", *keys)
    for trial in sorted(trials, key=lambda one: -(one.value if one.value is not None else -1.0)):
        value = "" if trial.value is None else f"{100 * trial.value:.2f}"
        table.add_row(str(trial.number), trial.status.lower(), value, *(str(trial.values.get(key, "")) for key in keys))
    return table
