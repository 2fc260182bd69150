"""Runs that are killed, stopped, starved or doubled lose nothing, and end like those that were left alone."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from compressor.engine import plan, run
from compressor.errors import CompressorError
from compressor.files import checkpoint_files, claimed
from compressor.progress import Progress
from compressor.recipe import load_recipe
from compressor.tasks import Classification
from tests.conftest import tiny_recipe, write_data

TRAINING = ("finetune", "reorder", "width", "depth", "finetune_family")


def write_recipe(folder: Path, kinds: tuple[str, ...] | None = TRAINING, **changes: Any) -> Path:
    """A tiny recipe that saves after every step, of the stages of some kinds (None: all), with whatever draws."""
    write_data(folder)
    value = tiny_recipe(folder)
    value["stages"] = [stage for stage in value["stages"] if kinds is None or stage["type"] in kinds]
    for stage in value["stages"]:
        if "epochs" in stage:
            stage["epochs"] = 3
        if stage["type"] == "width":
            stage["subnetworks"] = "sandwich"
        if stage["type"] == "depth":
            stage |= {"subnetworks": "sandwich", "monitor": {"times": 3}}
    value["data"]["selection"] = 0.2
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**value, "checkpoints": {"minutes": 0}, **changes}))
    return path


def python(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=800, check=False, **options)


def results(output: Path) -> dict[str, Any]:
    """Weights, bit for bit, and metrics, of everything that a run made."""
    found: dict[str, Any] = {str(p.relative_to(output)): p.read_bytes() for p in output.rglob("*.safetensors")}
    for file in output.rglob("metrics.jsonl"):
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        found[str(file.relative_to(output))] = [{**line, "examples_per_second": None} for line in lines]
    return found


def kill(folder: Path, kinds: tuple[str, ...] | None, kills: int, seed: int) -> list[str]:
    """Kill a run again and again; it must end like one that was left alone."""
    done = python("-m", "tests.killing", write_recipe(folder, kinds), folder, str(kills), str(seed))
    assert done.returncode == 0, done.stderr
    whole, killed = results(folder / "whole"), results(folder / "killed")
    assert whole.keys() == killed.keys() and whole
    assert [name for name in whole if whole[name] != killed[name]] == []
    left = [path.name for path in (folder / "killed" / "stages").iterdir()]
    assert sorted(left) == sorted(path.name for path in (folder / "whole" / "stages").iterdir())
    return list(json.loads(done.stdout.splitlines()[-1]))


def resumed(output: Path) -> list[str]:
    """Stages that went on from a checkpoint within them."""
    records = {path.parent.name: json.loads(path.read_text()) for path in output.glob("stages/*/stage.json")}
    return [name for name, record in records.items() if "seconds_are_since_step" in record]


def test_killed_runs_go_on_to_the_same_weights(tmp_path: Path) -> None:
    assert len(kill(tmp_path, TRAINING, kills=3, seed=0)) >= 2
    assert resumed(tmp_path / "killed")


@pytest.mark.slow
def test_runs_killed_in_every_stage_go_on_to_the_same_weights(tmp_path: Path) -> None:
    killed = kill(tmp_path, None, kills=36, seed=1)
    assert len(killed) >= 20
    assert {name[3:] for name in killed} >= {*TRAINING, "export", "evaluate", "benchmark"}


# --- asked to stop -------------------------------------------------------------------------------------------------


def start(recipe: Path, output: Path) -> subprocess.Popen[str]:
    """`compressor run` as a shell starts it."""
    command = [sys.executable, "-W", "ignore", "-m", "compressor", "run", str(recipe), "--output", str(output)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def until(run: subprocess.Popen[str], words: str) -> None:
    assert run.stdout
    for line in run.stdout:
        if words in line:
            return
    raise AssertionError(f"{words!r} was never said: {run.stderr.read() if run.stderr else ''}")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_says_how_to_go_on(tmp_path: Path, number: signal.Signals, code: int) -> None:
    recipe = write_recipe(tmp_path, ("finetune",), checkpoints={"minutes": 60})
    value = yaml.safe_load(recipe.read_text())
    value["stages"][0]["epochs"] = 2000
    recipe.write_text(yaml.safe_dump(value))
    run = start(recipe, tmp_path / "run")
    until(run, "01-finetune ...")
    partial = tmp_path / "run" / "stages" / "01-finetune.partial"
    while not (partial / "metrics.jsonl").is_file() or not (partial / "metrics.jsonl").stat().st_size:
        time.sleep(0.05)
    run.send_signal(number)
    _, said = run.communicate(timeout=60)
    assert run.returncode == code
    found = re.fullmatch(r"stopped after step (\d+), which is saved; the same command goes on from there\n", said)
    assert found
    steps = plan(load_recipe(str(recipe)), tmp_path / "run")
    assert steps[0].saved_step == int(found[1]) > 1 and not steps[0].done
    assert [path.name for path in partial.glob("step-*.pt")] == [f"step-{int(found[1]):08d}.pt"]


# --- two at a time, and nowhere to write ---------------------------------------------------------------------------


def test_a_second_run_in_one_folder_is_refused(tmp_path: Path, quiet: Progress) -> None:
    recipe = load_recipe(str(write_recipe(tmp_path, ("finetune",))))
    (tmp_path / "run").mkdir()
    with claimed(tmp_path / "run"), pytest.raises(CompressorError, match=r"another run is writing to .*/run; wait"):
        run(recipe, tmp_path / "run", quiet)
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
    run(recipe, tmp_path / "run", quiet)
    assert plan(recipe, tmp_path / "run")[0].done


LIMITED = """
import resource, sys
from compressor.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)), -1))
main()
"""


@pytest.mark.parametrize(
    ("minutes", "words"),
    [(0, "the checkpoint of step 1 cannot be written in"), (60, "stage 01-finetune cannot be written in")],
)
def test_a_full_disk_is_told_and_what_was_there_stays(tmp_path: Path, minutes: int, words: str) -> None:
    """A limit on the size of files stands for a disk without space: the same call fails in the same way."""
    recipe = write_recipe(tmp_path, ("finetune",))
    assert python("-m", "compressor", "run", recipe, "--output", tmp_path / "run").returncode == 0
    kept = results(tmp_path / "run")
    changed = ["stages.finetune.learning_rate=0.0001", f"checkpoints.minutes={minutes}"]
    done = python("-c", LIMITED, "20000", "run", recipe, *changed, "--output", tmp_path / "run")
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert words in done.stderr and "MiB are free" in done.stderr and "what was finished before stays" in done.stderr
    assert results(tmp_path / "run") == kept
    assert not list((tmp_path / "run").rglob("*.part")) and not list((tmp_path / "run" / "stages").glob(".*"))


def test_a_folder_that_may_not_be_written_is_told(tmp_path: Path, quiet: Progress) -> None:
    recipe = load_recipe(str(write_recipe(tmp_path, ("finetune",))))
    # Nobody may write there, not even root.
    with pytest.raises(CompressorError, match="the run cannot be written in /sys"):
        run(recipe, Path("/sys/run"), quiet)


# --- losses that are no numbers --------------------------------------------------------------------------------------


def test_a_loss_that_becomes_nan_stops_the_stage_and_keeps_the_last_good_checkpoint(
    tmp_path: Path, quiet: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(str(write_recipe(tmp_path, ("finetune", "reorder", "width"))))
    logit_loss, calls = Classification.logit_loss, iter(range(100))

    def breaking(self: Classification, teacher: Any, student: Any, temperature: float) -> Any:
        # Two sizes a step, also in a sandwich: the ninth call is the larger one at step 5.
        return logit_loss(self, teacher, student, temperature) * (float("nan") if next(calls) >= 8 else 1.0)

    monkeypatch.setattr(Classification, "logit_loss", breaking)
    message = r"the loss of w1\.00-d1\.00 is nan at step 5 \(epoch 2, training rows \d+.*; it began at .*learning_rate"
    with pytest.raises(CompressorError, match=message):
        run(recipe, tmp_path / "run", quiet)
    partial = tmp_path / "run" / "stages" / "03-width.partial"
    assert [path.name for path in checkpoint_files(partial)] == ["step-00000003.pt", "step-00000004.pt"]
    state = torch.load(checkpoint_files(partial)[-1], weights_only=True)
    assert all(tensor.isfinite().all() for tensor in state["model"].values())
    assert [step.done for step in plan(recipe, tmp_path / "run")] == [True, True, False]
