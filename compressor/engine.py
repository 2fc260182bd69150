"""Runs a recipe: plans its stages, skips what is done, and leaves whole artifacts or none."""

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.errors import CompressorError, OneProcessError
from compressor.files import (
    LOCK_FILE,
    claimed,
    explained,
    newest_checkpoint,
    read_json,
    replace_folder,
    temporary_folder,
    write_json,
    write_text,
)
from compressor.fingerprints import stage_fingerprints
from compressor.interruption import Interruption
from compressor.machine import describe_machine, describe_versions
from compressor.progress import Progress, format_seconds
from compressor.recipe import Recipe
from compressor.stages import Stage

if TYPE_CHECKING:
    from compressor.context import Context

RUN_FILE = "run.json"
STAGE_FILE = "stage.json"
# In the folder of a stage that is not done: which stage its checkpoints are of.
PARTIAL_FILE = "partial.json"
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
        saved_step: the training step that it goes on from, if it was cut off; 0 where it begins anew.
    """

    stage: Stage
    folder: Path
    fingerprint: str
    done: bool
    seconds: float | None
    saved_step: int = 0

    @property
    def name(self) -> str:
        """`03-width`."""
        return self.folder.name

    @property
    def partial(self) -> Path:
        """Where its checkpoints lie until it is done."""
        return self.folder.with_name(f"{self.name}.partial")


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
        step = Step(stage, folder, fingerprint, not behind, None if behind else record["seconds"])
        steps.append(replace(step, saved_step=_saved_step(step)) if behind else step)
    return steps


def _saved_step(step: Step) -> int:
    """The newest checkpoint's step, if the checkpoints are of this very stage."""
    return newest_checkpoint(step.partial) if _is_begun(step) else 0


def _is_begun(step: Step) -> bool:
    """Whether this very stage, and not another one in its place, was cut off and goes on from what it left."""
    file = step.partial / PARTIAL_FILE
    if not file.is_file() or read_json(file).get("fingerprint") != step.fingerprint:
        return False
    return any(step.partial.glob(step.stage.resumes))


def run(
    recipe: Recipe,
    output: Path,
    progress: Progress,
    interruption: Interruption | None = None,
    listener: Callable[[Mapping[str, Any]], None] | None = None,
) -> None:
    """Run the stages that are not done yet, in their order.

    Each stage writes into a temporary folder that gets its name when the stage is whole: what is cut off leaves
    nothing half-written behind. The same command goes on with the stage that was cut off, a training stage from its
    last checkpoint. Where a launcher started several processes, all of them train and the main one does the rest.

    Args:
        interruption: tells a training stage to save and stop; None never does.
        listener: is given every line of `metrics.jsonl` as it is written.

    Raises:
        CompressorError: a user's mistake, or a folder that cannot be written; finished stages stay.
        Stopped: the interruption asked for it.
    """
    steps = plan(recipe, output)
    if all(step.done for step in steps):
        _say_done(steps, progress)
        return
    # torch and transformers are loaded here, not before: a finished run is told at once.
    from compressor.context import Context
    from compressor.processes import Processes

    listeners = [listener] if listener else []
    context = Context(recipe, output, progress, Processes(), interruption or Interruption(), listeners)
    # Before anything is written: a mistake in model, data or sizes leaves no folder behind.
    context.check()
    with _claimed_output(context) as steps:
        _say_done(steps, progress)
        for step in steps:
            if not step.done:
                _run_step(context, step)
                if context.processes.main:
                    _write_run(context, plan(recipe, output))
            context.finished[step.stage.type] = step.folder
            if step.stage.checkpoint:
                context.checkpoints[step.stage.type] = step.folder


def _say_done(steps: list[Step], progress: Progress) -> None:
    for step in steps:
        if step.done:
            progress.say(f"{step.name}: done before ({format_seconds(step.seconds or 0)})")


@contextmanager
def _claimed_output(context: "Context") -> Iterator[list[Step]]:
    """The run's folder to itself, and the plan as it is from then on: another run may just have ended there."""
    processes, recipe, output = context.processes, context.recipe, context.output
    with explained("the run", output.parent):
        if processes.main:
            output.mkdir(parents=True, exist_ok=True)
        with claimed(output) if processes.main else nullcontext():
            processes.wait()
            steps = plan(recipe, output)
            processes.wait()
            if processes.main:
                _remove_leftovers(output, steps)
                write_text(output / "recipe.yaml", recipe.to_yaml())
                _write_run(context, steps)
            yield steps


def _remove_leftovers(output: Path, steps: list[Step]) -> None:
    """What runs that were killed left: folders under temporary names, checkpoints of stages that are done."""
    for folder in (*(output / "stages").glob(".*"), *output.glob(".family.*")):
        shutil.rmtree(folder)
    for step in steps:
        if step.done:
            shutil.rmtree(step.partial, ignore_errors=True)


def _run_step(context: "Context", step: Step) -> None:
    from transformers import set_seed

    if not context.processes.main and not step.stage.everywhere:
        context.processes.wait()
        return
    goes_on = f"goes on after step {step.saved_step} " if step.saved_step else ""
    context.progress.say(f"{step.name} {goes_on}...")
    # Of its own for every stage: a result does not depend on which stages were skipped before it.
    set_seed(context.recipe.seed)
    context.partial = step.partial
    if context.processes.main:
        _run_and_write(context, step)
    else:
        step.stage.run(context)
    context.processes.wait()
    if not (step.folder / STAGE_FILE).is_file():
        raise OneProcessError(
            f"--output: process {context.processes.rank} does not see {step.folder}; all machines need the same folder"
        )


def _run_and_write(context: "Context", step: Step) -> None:
    start = time.monotonic()
    with (
        explained(f"stage {step.name}", step.folder.parent),
        temporary_folder(step.folder) as folder,
        _partial_folder(step) if step.stage.resumes else nullcontext(),
    ):
        context.folder = folder
        words = step.stage.run(context)
        seconds = round(time.monotonic() - start, 1)
        write_json(
            folder / STAGE_FILE,
            {
                "type": step.stage.type,
                "fingerprint": step.fingerprint,
                "seconds": seconds,
                **({"seconds_are_since_step": step.saved_step} if step.saved_step else {}),
                "result": words,
                "settings": step.stage.model_dump(mode="json"),
            },
        )
        _remove_superseded(step)
        replace_folder(folder, step.folder)
    context.progress.say(f"{step.name}: {words} ({format_seconds(seconds)})")


@contextmanager
def _partial_folder(step: Step) -> Iterator[None]:
    """The folder of what a stage goes on from: it stays if the stage is cut off, and while it holds any of that."""
    if not _is_begun(step):
        # Checkpoints of another recipe's stage in the same place are of no use.
        shutil.rmtree(step.partial, ignore_errors=True)
        step.partial.mkdir(parents=True)
        write_json(step.partial / PARTIAL_FILE, {"fingerprint": step.fingerprint})
    try:
        yield
    except BaseException:
        if not any(step.partial.glob(step.stage.resumes)):
            shutil.rmtree(step.partial, ignore_errors=True)
        raise
    shutil.rmtree(step.partial)


def _remove_superseded(step: Step) -> None:
    """Artifacts of another stage in the same place, from before the recipe's stages changed."""
    for folder in step.folder.parent.glob(f"{step.name[:3]}*"):
        if folder not in (step.folder, step.partial):
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
        if any(file.name != LOCK_FILE for file in output.iterdir()):
            raise CompressorError(f"--output: {output} is not empty and holds no run; give an empty or a new folder")
        return
    known, wanted = read_json(file).get("identity", {}), _identity(recipe)
    for key in IDENTITY:
        if known.get(key) != wanted[key]:
            raise CompressorError(
                f"--output: {output} holds a run of another recipe: its {key} is {known.get(key)}, "
                f"this one's is {wanted[key]}; give another folder"
            )


def _write_run(context: "Context", steps: list[Step]) -> None:
    write_json(
        context.output / RUN_FILE,
        {
            "identity": _identity(context.recipe),
            "seed": context.recipe.seed,
            "processes": context.processes.count,
            "device": str(context.processes.device),
            "versions": describe_versions(),
            "machine": describe_machine(),
            "stages": [
                {"name": step.name, "done": step.done, "seconds": step.seconds, "fingerprint": step.fingerprint}
                for step in steps
            ],
        },
    )
