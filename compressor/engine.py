"""Runs a recipe: plans its stages, skips what is done, and leaves whole artifacts or none."""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.errors import CompressorError
from compressor.files import read_json, replace_folder, temporary_folder, write_json, write_text
from compressor.fingerprints import stage_fingerprints
from compressor.machine import describe_machine, describe_versions
from compressor.progress import Progress, format_seconds
from compressor.recipe import Recipe
from compressor.stages import Stage

if TYPE_CHECKING:
    from compressor.context import Context

RUN_FILE = "run.json"
STAGE_FILE = "stage.json"
# A run's folder is known by these parts of its recipe; stages may change, they are simply run again.
IDENTITY = ("model", "task", "data")


@dataclass(frozen=True)
class Step:
    """A stage of a run.

    Attributes:
        folder: where its artifact lies, or will.
        fingerprint: of everything that its result depends on.
        done: whether the artifact is there and of this fingerprint.
        seconds: that it took, if it is done.
    """

    stage: Stage
    folder: Path
    fingerprint: str
    done: bool
    seconds: float | None

    @property
    def name(self) -> str:
        """`03-width`."""
        return self.folder.name


def plan(recipe: Recipe, output: Path) -> list[Step]:
    """What a run in this folder would do; nothing is executed or written.

    Raises:
        CompressorError: the folder holds something else, or a run of another model, task or data.
    """
    _check_output(recipe, output)
    steps: list[Step] = []
    behind = False
    for place, (stage, fingerprint) in enumerate(zip(recipe.stages, stage_fingerprints(recipe), strict=True), start=1):
        folder = output / "stages" / f"{place:02d}-{stage.type}"
        record = _record(folder)
        fresh = record.get("fingerprint") == fingerprint and all((output / file).is_file() for file in stage.delivers)
        # What stands behind a stage that runs again runs again too: it may have to write into the same family.
        behind = behind or not fresh
        steps.append(Step(stage, folder, fingerprint, not behind, None if behind else record["seconds"]))
    return steps


def run(recipe: Recipe, output: Path, progress: Progress) -> None:
    """Run the stages that are not done yet, in their order.

    Each stage writes into a temporary folder that gets its name when the stage is whole: what is cut off leaves
    nothing behind, and the same command goes on with the stage that was cut off.

    Raises:
        CompressorError: a user's mistake; finished stages stay.
    """
    steps = plan(recipe, output)
    finished = [step for step in steps if step.done]
    for step in finished:
        progress.say(f"{step.name}: done before ({format_seconds(step.seconds or 0)})")
    if len(finished) == len(steps):
        return
    # torch and transformers are loaded here, not before: a finished run is told at once.
    from compressor.context import Context

    context = Context(recipe, output, progress)
    # Before anything is written: a mistake in model, data or sizes leaves no folder behind.
    context.check()
    output.mkdir(parents=True, exist_ok=True)
    write_text(output / "recipe.yaml", recipe.to_yaml())
    _write_run(recipe, output, steps)
    for step in steps:
        if not step.done:
            _run_step(context, step)
            _write_run(recipe, output, plan(recipe, output))
        if step.stage.checkpoint:
            context.checkpoints[step.stage.type] = step.folder


def _run_step(context: "Context", step: Step) -> None:
    from transformers import set_seed

    context.progress.say(f"{step.name} ...")
    start = time.monotonic()
    # Of its own for every stage: a result does not depend on which stages were skipped before it.
    set_seed(context.recipe.seed)
    with temporary_folder(step.folder) as folder:
        context.folder = folder
        words = step.stage.run(context)
        seconds = round(time.monotonic() - start, 1)
        write_json(
            folder / STAGE_FILE,
            {
                "type": step.stage.type,
                "fingerprint": step.fingerprint,
                "seconds": seconds,
                "result": words,
                "settings": step.stage.model_dump(mode="json"),
            },
        )
        _remove_superseded(step)
        replace_folder(folder, step.folder)
    context.progress.say(f"{step.name}: {words} ({format_seconds(seconds)})")


def _remove_superseded(step: Step) -> None:
    """Artifacts of another stage in the same place, from before the recipe's stages changed."""
    for folder in step.folder.parent.glob(f"{step.name[:3]}*"):
        if folder != step.folder:
            shutil.rmtree(folder)


def _record(folder: Path) -> dict[str, Any]:
    """What a finished stage wrote of itself; empty if there is none."""
    file = folder / STAGE_FILE
    return read_json(file) if file.is_file() else {}


def _identity(recipe: Recipe) -> dict[str, Any]:
    return {key: recipe.model_dump(mode="json")[key] for key in IDENTITY}


def _check_output(recipe: Recipe, output: Path) -> None:
    if not output.exists():
        return
    if not output.is_dir():
        raise CompressorError(f"--output: {output} is a file; a folder is needed")
    file = output / RUN_FILE
    if not file.is_file():
        if any(output.iterdir()):
            raise CompressorError(f"--output: {output} is not empty and holds no run; give an empty or a new folder")
        return
    known, wanted = read_json(file).get("identity", {}), _identity(recipe)
    for key in IDENTITY:
        if known.get(key) != wanted[key]:
            raise CompressorError(
                f"--output: {output} holds a run of another recipe: its {key} is {known.get(key)}, "
                f"this one's is {wanted[key]}; give another folder"
            )


def _write_run(recipe: Recipe, output: Path, steps: list[Step]) -> None:
    write_json(
        output / RUN_FILE,
        {
            "identity": _identity(recipe),
            "seed": recipe.seed,
            "versions": describe_versions(),
            "machine": describe_machine(),
            "stages": [
                {"name": step.name, "done": step.done, "seconds": step.seconds, "fingerprint": step.fingerprint}
                for step in steps
            ],
        },
    )
