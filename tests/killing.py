"""Kills runs at drawn moments, and goes on until they are done: `python -m tests.killing RECIPE FOLDER KILLS SEED`.

A process of its own, which loads torch once and forks a child for every attempt: a fresh interpreter an attempt would
take longer than the runs. Prints, as JSON, the stages in which children were killed.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
import warnings
from pathlib import Path

import torch
from rich.console import Console

import compressor.context
import compressor.export.graph
import compressor.export.session
import compressor.stages.learning  # noqa: F401  loaded before the forks, once
from compressor.engine import run
from compressor.files import read_json
from compressor.progress import Progress
from compressor.recipe import load_recipe


def attempt(recipe: str, output: Path) -> tuple[int, int]:
    """Start a run in a child; its process and the end of a pipe that it writes its progress to."""
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        return child, reading
    os.close(reading)
    try:
        with os.fdopen(writing, "w", buffering=1) as told:
            run(load_recipe(recipe), output, Progress(Console(file=told, width=200)))
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


def finish(recipe: str, output: Path) -> None:
    """Run to the end."""
    child, pipe = attempt(recipe, output)
    with os.fdopen(pipe) as told:
        told.read()
    if os.waitpid(child, 0)[1]:
        raise SystemExit("the run failed")


def kill_in(recipe: str, output: Path, stage: str, delay: float) -> str | None:
    """Kill a run so many seconds after it came to a stage; the stage it was in, or None if it was done by then."""
    begun: list[str] = []
    child, pipe = attempt(recipe, output)
    with os.fdopen(pipe) as told:
        for line in told:
            if line.startswith(stage):
                # It begins or goes on; or it was done before, and the kill hits one behind it.
                begun = [line.split()[0].rstrip(":")]
                break
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
        begun += [line.split()[0] for line in told if line.rstrip().endswith("...")]
    _, status = os.waitpid(child, 0)
    return begun[-1] if os.WIFSIGNALED(status) else None


def main() -> None:
    """A run to the end in FOLDER/whole, another one in FOLDER/killed."""
    recipe, folder, kills, seed = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    finish(recipe, folder / "whole")
    stages = read_json(folder / "whole" / "run.json")["stages"]
    draw = random.Random(seed)
    killed = []
    # Every stage in turn, as often; one that an attempt got through is taken away, so that it is run again.
    for number in range(kills):
        stage = stages[number * len(stages) // kills]
        done = folder / "killed" / "stages" / stage["name"]
        shutil.rmtree(done, ignore_errors=True)
        killed.append(kill_in(recipe, folder / "killed", stage["name"], draw.uniform(0, stage["seconds"])))
    finish(recipe, folder / "killed")
    print(json.dumps([name for name in killed if name]))


if __name__ == "__main__":
    main()
