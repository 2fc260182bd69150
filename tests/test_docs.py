"""What README, docs and benchmarks tell people to run does run."""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import typer

from compressor.cli import app
from compressor.recipe import bundled, load_recipe

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "recipes").glob("*.yaml"))]


def test_the_readmes_library_example_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    code = next(block for block in blocks if "losses" in block)
    subprocess.run([sys.executable, "-c", code + "assert student.grad is not None"], check=True)


def test_every_command_names_a_recipe_and_overrides_that_exist() -> None:
    commands = [
        match[1]
        for page in PAGES
        for match in re.finditer(r"compressor run (\S+[^\n]*(?:\\\n[^\n]*)*)", page.read_text())
    ]
    bundled_ones = [command for command in commands if command.split()[0] in bundled()]
    assert len(bundled_ones) >= 5
    for command in bundled_ones:
        name, *words = command.split("#")[0].split()
        plain = [word for word in words if re.fullmatch(r"[a-z_.]+=[^'\"$]+", word)]
        load_recipe(name, plain)


def test_every_command_on_a_family_has_options_that_exist() -> None:
    commands = [
        match[1].split("#")[0]
        for page in PAGES
        for match in re.finditer(
            r"^(?:.*/|cat .* \| )?compressor ((?:bench|pick|predict|search) .*)", page.read_text(), re.MULTILINE
        )
    ]
    assert len(commands) >= 8
    known: Any = typer.main.get_command(app)
    for command in commands:
        name, *words = shlex.split(command)
        known.commands[name].make_context(name, words)


def test_the_benchmark_of_losses_runs_and_agrees_with_difference_vectors() -> None:
    script = ROOT / "benchmarks" / "losses.py"
    small = ["--batch", "2", "--lengths", "6", "30", "--hidden", "8", "--states", "3", "--rounds", "1"]
    result = subprocess.run([sys.executable, script, *small], capture_output=True, text=True, check=True)
    rows = [line.split() for line in result.stdout.splitlines()[2:] if ":" not in line]
    assert [row[0] for row in rows[::2]] == ["word_pair", "word_angle", "word_angle_21", "layer_pair", "layer_angle"]
    assert all(float(row[-1]) < 1e-3 for row in rows)
    assert "compressor's seconds for a text grow as n^" in result.stdout


def test_the_benchmark_of_training_runs() -> None:
    script = ROOT / "benchmarks" / "training.py"
    arguments = ["--model", "tiny", "--steps", "1", "--stages", "finetune", "depth", "--lengths", "SST-2", "--skip-128"]
    result = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, check=True)
    rows = [re.split(r"\s{2,}", line) for line in result.stdout.splitlines()[2:] if "parts:" not in line]
    assert [row[:2] for row in rows if row[0] == "depth"] == [
        ["depth", kind] for kind in ("to batch", "compressor", "sandwich")
    ]
    assert all(float(row[2]) > 0 and row[-1].endswith("MiB") for row in rows)
    assert [row[3] for row in rows if row[1] == "compressor"] == ["1.00x", "1.00x"]


def test_runs_are_compared(finished_run: tuple[Path, Path]) -> None:
    script = ROOT / "benchmarks" / "compare.py"
    result = subprocess.run([sys.executable, script, finished_run[1]], capture_output=True, text=True, check=True)
    assert "| mean of the sizes |" in result.stdout and "| finetune |" in result.stdout


def test_objectives_are_compared(encoder: Path, shared: Path, tmp_path: Path) -> None:
    script = ROOT / "benchmarks" / "objectives.py"
    size = [
        "--labelled",
        "40",
        "--texts",
        "24",
        "--held-out",
        "30",
        "--teacher-epochs",
        "1",
        "--seeds",
        "1",
        "--max-length",
        "40",
    ]
    source = ["--glue", str(shared / "data" / "glue"), "--model", str(encoder), "--output", str(tmp_path / "runs")]
    command = [sys.executable, script, "--task", "SST-2", *source, *size, "--objectives", "logits", "mine={logits: 2}"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = [line.split("|")[1:-1] for line in result.stdout.splitlines() if line.startswith("| ")]
    assert [row[0].strip() for row in rows] == ["objective", "logits", "mine"]
    assert all(30 < float(cell) < 80 for row in rows[1:] for cell in row[2:])
    parts = [(tmp_path / "runs" / "data-1" / f"{name}.tsv").read_text().splitlines() for name in ("labelled", "texts")]
    assert [len(part) for part in parts] == [41, 25] and not set(parts[0][1:]) & set(parts[1][1:])
