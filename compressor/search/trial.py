"""One trial of a tuning, a process of its own that NNI starts: `python -m compressor.search.trial`."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nni
from rich.console import Console

from compressor.engine import run
from compressor.errors import CompressorError
from compressor.files import write_text
from compressor.progress import Progress
from compressor.search.tuning import ERROR_FILE, Plan, trial_recipe

# Lies where NNI starts a trial.
PLAN = "plan.json"


def main() -> None:
    """Train with the values that NNI suggests, tell it every score on the way, and the last one as the result."""
    plan = Plan.read(Path(PLAN))
    os.chdir(plan.directory)
    values = nni.get_next_parameter()
    folder = Path(plan.folder) / str(nni.get_sequence_id())
    last: list[float] = []

    def listen(line: Mapping[str, Any]) -> None:
        if "monitor" in line:
            last.append(plan.score(line["monitor"]["sizes"]))
            nni.report_intermediate_result(last[-1])

    try:
        run(trial_recipe(plan, values), folder, Progress(Console(quiet=True)), listener=listen)
    except CompressorError as error:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / ERROR_FILE, f"{error}\n")
        raise SystemExit(2) from error
    nni.report_final_result(last[-1])
    for weights in folder.glob("stages/*/model.safetensors"):
        weights.unlink()


if __name__ == "__main__":
    main()
