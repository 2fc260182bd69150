"""Families of several runs side by side: the metric of every size in PyTorch, and the seconds of every stage.

.venv/bin/python benchmarks/compare.py runs/sst2-dynabert runs/sst2-ckd
"""

import argparse
from pathlib import Path

from compressor.export.manifest import Manifest, read_manifest
from compressor.files import read_json


def metric_table(families: dict[str, Manifest]) -> str:
    """Metrics in percent, one column a run: teacher, every size, their mean, and the best constant answer."""
    names = [size.name for size in next(iter(families.values())).sizes]
    scores = {run: {size.name: size.metrics["torch"] for size in family.sizes} for run, family in families.items()}
    rows = {"teacher": [family.teacher["metrics"]["torch"] for family in families.values()]}
    rows |= {name: [scores[run][name] for run in families] for name in names}
    rows["mean of the sizes"] = [sum(found.values()) / len(found) for found in scores.values()]
    rows["most frequent answer"] = [family.evaluation["baseline"] for family in families.values()]
    return _markdown(["size", *families], [[name, *(f"{100 * x:.2f}" for x in row)] for name, row in rows.items()])


def seconds_table(runs: dict[str, Path]) -> str:
    """Seconds of each stage, one column a run; `-` where a run has no such stage."""
    seconds = {
        name: {stage["name"][3:]: stage["seconds"] for stage in read_json(folder / "run.json")["stages"]}
        for name, folder in runs.items()
    }
    stages = list(dict.fromkeys(stage for found in seconds.values() for stage in found))
    rows = [[stage, *(str(found.get(stage, "-")) for found in seconds.values())] for stage in stages]
    return _markdown(["stage, seconds", *runs], rows)


def _markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|---" + "|---:" * (len(header) - 1) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    runs = {folder.name: folder for folder in parser.parse_args().runs}
    print(metric_table({name: read_manifest(folder / "family") for name, folder in runs.items()}), end="\n\n")
    print(seconds_table(runs))


if __name__ == "__main__":
    main()
