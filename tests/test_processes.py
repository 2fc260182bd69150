"""Several processes: shares of a batch, and two of them against one."""

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
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from compressor.engine import run
from compressor.losses.geometry import Geometry
from compressor.losses.objective import Outputs, terms
from compressor.losses.shares import shares
from compressor.progress import Progress
from compressor.recipe import check_recipe
from compressor.settings import ObjectiveSettings
from compressor.tasks import Classification
from tests.conftest import tiny_recipe, write_data

TASK = Classification(("a", "b", "c"))


def objective(**changes: Any) -> ObjectiveSettings:
    weights = dict.fromkeys(("logits", "labels", "hidden_mse", *ObjectiveSettings.RELATIONS), 1.0)
    return ObjectiveSettings(**{**weights, **changes})


@settings(deadline=None, max_examples=60)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=2, max_size=7),
    parts=st.integers(2, 3),
    normalization=st.sampled_from(["valid", "per_row", "reference"]),
    window=st.sampled_from([None, 3, 5]),
)
def test_parts_of_a_batch_add_up_to_it(lengths: list[int], parts: int, normalization: str, window: int | None) -> None:
    torch.manual_seed(0)
    how, rows, longest = objective(normalization=normalization, window=window), len(lengths), max(lengths)
    mask = (torch.arange(longest) < torch.tensor(lengths)[:, None]).long()
    states = torch.randn(2, rows, 4, longest, 6, dtype=torch.float64)
    logits, labels = torch.randn(2, rows, 3, dtype=torch.float64), torch.arange(rows) % 3

    def losses(part: slice) -> dict[str, torch.Tensor]:
        taught, said = (Outputs(logits[side, part], Geometry(states[side, part], mask[part])) for side in (0, 1))
        return terms(how, TASK, said, taught, labels[part])

    whole = losses(slice(None))
    total = dict.fromkeys(whole, torch.zeros((), dtype=torch.float64))
    for rank in range(parts):
        part = slice(rank, None, parts)
        if len(mask[part]):
            weights = shares(how, mask, mask[part])
            total = {term: total[term] + weights[term] * value for term, value in losses(part).items()}
    for term, value in whole.items():
        torch.testing.assert_close(total[term], value, rtol=1e-6, atol=1e-9, check_dtype=False, msg=term)


def recipe(folder: Path) -> dict[str, Any]:
    """All stages that train, without dropout, with every term; batches that two processes cannot share evenly."""
    value = tiny_recipe(folder)
    value["model"]["dropout"] = 0.0
    # With labels: a full-size student that still is its teacher has gradients of 0, and Adam would follow the rounding.
    value["objective"] = objective().model_dump()
    kinds = ("finetune", "reorder", "width", "depth", "finetune_family")
    value["stages"] = [stage for stage in value["stages"] if stage["type"] in kinds]
    for stage in value["stages"]:
        if stage["type"] != "reorder":
            stage |= {"batch_size": 17, "learning_rate": 1e-4}
    value["stages"][2]["subnetworks"] = "sandwich"
    value["data"] |= {"selection": 0.2}
    value["stages"][3]["monitor"] = {"times": 2}
    value["checkpoints"] = {"minutes": 0}
    return value


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "CUDA_VISIBLE_DEVICES": ""}


def command(folder: Path, count: int) -> list[str]:
    """`torchrun -m compressor run` with as many processes on this machine."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    return [*launcher, "-m", "compressor", "run", str(folder / "recipe.yaml"), "--output", str(folder / "two")]


def test_two_processes_train_as_one(tmp_path: Path, quiet: Progress) -> None:
    write_data(tmp_path)
    value = recipe(tmp_path)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(value))
    result = subprocess.run(
        command(tmp_path, 2), env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("01-finetune") == 2, "one process alone speaks: a line before, a line behind"
    assert json.loads((tmp_path / "two" / "run.json").read_text())["processes"] == 2
    run(check_recipe(value, "r"), tmp_path / "one", quiet)
    for stage in ("01-finetune", "03-width", "04-depth", "05-finetune_family"):
        one, two = tmp_path / "one" / "stages" / stage, tmp_path / "two" / "stages" / stage
        expected, found = (load_file(folder / "model.safetensors") for folder in (one, two))
        for name, tensor in expected.items():
            # A softmax does not see what is added to all its scores: the gradient of the keys' bias is 0 in truth,
            # rounding in practice, and Adam makes steps of it that change no output.
            if name.endswith("key.bias"):
                continue
            torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-5, msg=f"{stage} {name}")
        for line, other in zip(lines(one), lines(two), strict=True):
            if "loss" in line:
                assert other["sizes"] == pytest.approx(line["sizes"], rel=1e-5)
                assert other["terms"] == pytest.approx(line["terms"], rel=1e-5, abs=1e-6)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_two_processes_stop_at_the_same_step_and_go_on(tmp_path: Path, quiet: Progress) -> None:
    write_data(tmp_path)
    value = recipe(tmp_path)
    value["stages"] = value["stages"][:1]
    value["stages"][0]["epochs"] = 60
    value["checkpoints"] = {"minutes": 60}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(value))
    started = subprocess.Popen(command(tmp_path, 2), env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    log = tmp_path / "two" / "stages" / "01-finetune.partial" / "metrics.jsonl"
    while not log.is_file() or not log.stat().st_size:
        time.sleep(0.05)
    started.send_signal(signal.SIGTERM)
    _, said = started.communicate(timeout=60)
    step = re.search(r"stopped after step (\d+), which is saved", said)
    assert step and started.returncode
    # One process goes on with what two began.
    run(check_recipe(value, "r"), tmp_path / "two", quiet)
    run(check_recipe(value, "r"), tmp_path / "one", quiet)
    record = json.loads((tmp_path / "two" / "stages" / "01-finetune" / "stage.json").read_text())
    assert record["seconds_are_since_step"] == int(step[1])
    ends = [lines(tmp_path / name / "stages" / "01-finetune")[-1]["loss"] for name in ("one", "two")]
    assert ends[1] == pytest.approx(ends[0], rel=0.05)
