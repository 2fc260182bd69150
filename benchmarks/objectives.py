"""Objectives against each other: several seeds, equal steps, a teacher that knew fewer labels than there are texts.

    .venv/bin/python benchmarks/objectives.py --task SST-2 --glue ../shared/data/glue --model MODEL --output runs/sst2

For each seed a part of the training rows is drawn with labels for the teacher, more of them without labels for the
distillation, and others are held out: weights may be chosen by these, the dev rows are for the report alone. All
objectives of a seed share teacher and reordering, and differ in nothing but the objective of `width` and `depth`. With
`--student '{layers: 3, hidden: 192, heads: 6, intermediate: 768}'` they train one student of that shape instead (stage
`distill`). What is done already is not run again. Prints the metric of the teacher, the mean of the sizes and the
smallest size.
"""

import argparse
import random
import shutil
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from compressor.context import Context
from compressor.data import shortest_first
from compressor.engine import run
from compressor.files import read_json, write_json
from compressor.processes import Processes
from compressor.progress import Progress
from compressor.recipe import Recipe, check_recipe
from compressor.training import Monitor

RELATIONS = {"word_pair": 1, "word_angle": 10, "layer_pair": 1, "layer_angle": 10}
# `untrained` is the family as `reorder` leaves it.
OBJECTIVES: dict[str, dict[str, Any] | None] = {
    "untrained": None,
    "logits": {"logits": 1},
    "mse": {"logits": 1, "hidden_mse": 0.1},
    "wr": {"logits": 1, "word_pair": 1, "word_angle": 10},
    "ltr": {"logits": 1, "layer_pair": 1, "layer_angle": 10},
    "wr+ltr": {"logits": 1, **RELATIONS},
}


@dataclass(frozen=True)
class Glue:
    """Where a GLUE task has its columns, and how many rows of the training file play which part."""

    text: str
    text_pair: str | None
    label: str
    metric: str
    labelled: int
    texts: int
    held_out: int
    batch_size: int = 32


TASKS = {
    "SST-2": Glue("sentence", None, "label", "accuracy", labelled=4000, texts=12000, held_out=2000),
    "MRPC": Glue("#1 String", "#2 String", "Quality", "accuracy", labelled=1000, texts=2068, held_out=600),
}


def write_parts(task: Glue, train: Path, folder: Path, seed: int) -> None:
    """`labelled.tsv`, `texts.tsv` and `held-out.tsv`, drawn without overlap."""
    header, *rows = train.read_text(encoding="utf-8-sig").splitlines()
    drawn = random.Random(seed).sample(rows, task.labelled + task.texts + task.held_out)
    folder.mkdir(parents=True, exist_ok=True)
    start = 0
    for name, count in (("labelled", task.labelled), ("texts", task.texts), ("held-out", task.held_out)):
        (folder / f"{name}.tsv").write_text("\n".join([header, *drawn[start : start + count]]) + "\n")
        start += count


def recipe_of(task: Glue, options: argparse.Namespace, seed: int, objective: dict[str, Any] | None) -> Recipe:
    """Teacher and reordering, and with an objective the distillation too."""
    folder = options.output / f"data-{seed}"
    rate = {"batch_size": task.batch_size, "learning_rate": options.rate}
    teacher_rate = {**rate, "learning_rate": options.teacher_rate or options.rate}
    stages: list[dict[str, Any]] = [{"type": "finetune", **teacher_rate, "epochs": options.teacher_epochs}]
    training = {**rate, "epochs": options.epochs, "objective": objective}
    if options.student:
        distill = {"type": "distill", **training, "student": options.student, "init_layers": options.init_layers}
        stages += [distill] if objective else []
    else:
        stages.append({"type": "reorder", "criterion": options.criterion})
        depth = {"type": "depth", **training, "subnetworks": options.subnetworks}
        stages += [{"type": "width", **training}, depth] if objective else []
    columns = {"text": task.text, "text_pair": task.text_pair, "label": task.label}
    files = {name: str(folder / f"{file}.tsv") for name, file in (("train", "labelled"), ("unlabelled", "texts"))}
    validation = str(options.glue / options.task / "dev.tsv")
    return check_recipe(
        {
            "seed": seed,
            "model": options.model,
            "task": {"type": "text-classification", "metric": task.metric},
            "data": {**files, "validation": validation, **columns, "max_length": options.max_length},
            **({"family": {"widths": [1.0], "depths": [1.0]}} if options.student else {}),
            "stages": stages,
        },
        "objectives",
    )


def scores(recipe: Recipe, output: Path, held_out: Path) -> dict[str, dict[str, float]]:
    """The metric of the teacher and of every size in PyTorch, on dev and on the rows that were held out."""
    found: dict[str, dict[str, float]] = {}
    for name, file in (("dev", recipe.data.validation), ("held out", str(held_out))):
        data = recipe.data.model_copy(update={"validation": file})
        context = Context(recipe.model_copy(update={"data": data}), output, _quiet(), Processes())
        context.checkpoints = {
            stage.type: output / "stages" / f"{i:02d}-{stage.type}" for i, stage in enumerate(recipe.stages, 1)
        }
        rows = shortest_first(context.data.validation)
        batches, answers, task = context.data.batches(rows, 64), context.data.labels(rows), context.data.task
        teacher, family = context.teacher(), context.latest()
        found[name] = {"most frequent": task.baseline(answers)}
        for supernet, sizes in (
            (teacher, {"teacher": teacher.whole}),
            (family, context.sizes(family.dimensions)),
        ):
            found[name] |= Monitor(sizes, batches, answers, task, times=1, keeps_best=False).score(supernet)
    return found


def _quiet() -> Progress:
    return Progress(Console(quiet=True))


def run_one(task: Glue, options: argparse.Namespace, seed: int, name: str, objective: dict[str, Any] | None) -> None:
    """Train and score one objective with one seed, unless that is done."""
    folder = options.output / f"{name}-{seed}"
    file = folder / "scores.json"
    if file.is_file():
        return
    teacher = options.output / f"teacher-{seed}"
    run(recipe_of(task, options, seed, None), teacher, _quiet())
    if not folder.exists():
        shutil.copytree(teacher, folder)
    recipe = recipe_of(task, options, seed, objective)
    run(recipe, folder, _quiet())
    write_json(file, scores(recipe, folder, options.output / f"data-{seed}" / "held-out.tsv"))
    for stage in folder.glob("stages/*/model.safetensors"):
        stage.unlink()
    print(f"{name}, seed {seed}: {_line(file)}", flush=True)


def _line(file: Path) -> str:
    return ", ".join(f"{part} {_mean(found):.2f}" for part, found in read_json(file).items())


def _mean(found: dict[str, float]) -> float:
    return 100 * statistics.mean(_sizes(found).values())


def _sizes(found: dict[str, float]) -> dict[str, float]:
    return {size: value for size, value in found.items() if size.startswith("w")}


def table(output: Path, names: list[str], seeds: list[int]) -> str:
    """One row an objective: means over the seeds that are done, for dev and held-out rows."""
    lines = [
        "| objective | seeds | held out: mean of sizes | smallest | dev: mean of sizes | smallest |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name in names:
        files = [file for seed in seeds if (file := output / f"{name}-{seed}" / "scores.json").is_file()]
        found = [read_json(file) for file in files]
        if found:
            cells = []
            for part in ("held out", "dev"):
                means = [_mean(scores[part]) for scores in found]
                smallest = [100 * scores[part][min(_sizes(scores[part]))] for scores in found]
                cells += [
                    f"{statistics.mean(means):.2f}" + (f" ± {statistics.stdev(means):.2f}" if len(means) > 1 else ""),
                    f"{statistics.mean(smallest):.2f}",
                ]
            lines.append(f"| {name} | {len(found)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, default="SST-2")
    parser.add_argument("--glue", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--objectives", nargs="+", default=list(OBJECTIVES)[1:], help="names, or NAME={logits: 1, ...}")
    parser.add_argument("--criterion", choices=["dynabert", "taylor", "magnitude"], default="dynabert")
    parser.add_argument("--labelled", type=int)
    parser.add_argument("--texts", type=int)
    parser.add_argument("--held-out", type=int)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--teacher-epochs", type=int, default=3)
    parser.add_argument("--rate", type=float, default=5e-5)
    parser.add_argument("--teacher-rate", type=float, help="the teacher's learning rate, if not --rate")
    parser.add_argument("--subnetworks", choices=["all", "sandwich"], default="all")
    parser.add_argument("--student", type=yaml.safe_load, help="the shape of one student, instead of a family")
    parser.add_argument("--init-layers", type=yaml.safe_load, default="none")
    options = parser.parse_args()
    task = TASKS[options.task]
    changes = {name: value for name in ("labelled", "texts", "held_out") if (value := getattr(options, name))}
    task = Glue(**{**vars(task), **changes})
    objectives = {}
    for text in options.objectives:
        name, _, own = text.partition("=")
        objectives[name] = yaml.safe_load(own) if own else OBJECTIVES[name]
    for seed in options.seeds:
        write_parts(task, options.glue / options.task / "train.tsv", options.output / f"data-{seed}", seed)
        for name, objective in objectives.items():
            run_one(task, options, seed, name, objective)
    teachers = [
        read_json(options.output / f"{next(iter(objectives))}-{seed}" / "scores.json") for seed in options.seeds
    ]
    frequent = 100 * teachers[0]["dev"]["most frequent"]
    print(f"{options.task}: {task}, seeds {options.seeds}; most frequent answer {frequent:.2f}")
    print("teacher, dev: " + ", ".join(f"{100 * found['dev']['teacher']:.2f}" for found in teachers))
    print(table(options.output, list(objectives), options.seeds))


if __name__ == "__main__":
    main()
