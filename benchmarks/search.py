"""Searches of one super-network against the grid and against each other, from what their runs left.

    .venv/bin/python benchmarks/search.py runs/sst2-search-tpe runs/sst2-search-random

For the latency of each of the grid's sizes: the metric of that size, of the grid's best that is as fast, and of the
best that each search found, on the held-out rows. Below, for runs that were evaluated, the same on the validation data,
which no search saw, for the sizes that were shipped.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from compressor.export.manifest import MANIFEST, read_manifest
from compressor.files import read_json


def best(points: list[dict[str, Any]], milliseconds: float) -> float | None:
    """The highest metric, in percent, of what is in time."""
    found = [point["metric"] for point in points if point["milliseconds"] <= milliseconds + 1e-9]
    return 100 * max(found) if found else None


def table(title: str, grid: dict[str, dict[str, Any]], others: dict[str, list[dict[str, Any]]]) -> str:
    """One row a size of the grid but the largest, the slowest first."""
    lines = [
        f"| {title} | ms | itself | grid's best | " + " | ".join(others) + " |",
        "|---" + "|---:" * (len(others) + 3) + "|",
    ]
    for name, point in sorted(grid.items(), key=lambda item: -item[1]["milliseconds"])[1:]:
        limit = point["milliseconds"]
        values = [
            100 * point["metric"],
            best(list(grid.values()), limit),
            *(best(some, limit) for some in others.values()),
        ]
        cells = ["" if value is None else f"{value:.2f}" for value in values]
        lines.append(f"| {name} | {limit:.2f} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def searched(run: Path) -> Path:
    """The folder of a run's search."""
    return next((run / "stages").glob("*-search"))


def held_out(runs: list[Path]) -> str:
    """What searches found, on the rows that chose the winners."""
    grid = read_json(searched(runs[0]) / "sizes.json")["grid"]
    others = {}
    for run in runs:
        lines = (searched(run) / "finalists.jsonl").read_text().splitlines()
        others[run.name] = [json.loads(line) for line in lines]
    return table(f"{next(iter(grid.values()))['rows']} held-out rows", grid, others)


def validation(run: Path) -> str:
    """What one search shipped, on the validation data; latencies are those that the search went by."""
    found, family = read_json(searched(run) / "sizes.json"), read_manifest(run / "family")
    metrics = {size.name: size.metrics["torch"] for size in family.sizes}
    grid, sizes = (
        {name: {**point, "metric": metrics[name]} for name, point in found[part].items()} for part in ("grid", "sizes")
    )
    return table(f"{family.evaluation['rows']} validation rows", grid, {run.name: list(sizes.values())})


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    options = parser.parse_args()
    print(held_out(options.runs))
    for run in options.runs:
        if (run / "family" / MANIFEST).is_file() and read_manifest(run / "family").evaluation:
            print("\n" + validation(run))


if __name__ == "__main__":
    main()
