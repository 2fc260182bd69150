"""Trackers: TensorBoard, Weights & Biases, MLflow, by accelerate."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import imports

from compressor.errors import CompressorError


def check_tracking(kind: str) -> None:
    """Raise CompressorError if the tracker's package is not installed: accelerate would leave it out in silence."""
    if not getattr(imports, f"is_{kind}_available")():
        raise CompressorError(
            f"tracking: {kind} is not installed; `pip install {kind}`, or set tracking to null"
            " (metrics.jsonl is written anyway)"
        )


class Tracker:
    """Hands the lines of `metrics.jsonl` on, as flat numbers."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator

    def log(self, line: Mapping[str, Any]) -> None:
        """One line, by the step that it names."""
        values = {name: value for name, value in _flat(line, "") if name != "step"}
        self._accelerator.log(values, step=line["step"])


@contextmanager
def tracked(kind: str | None, folder: Path, stage: str, settings: Mapping[str, Any]) -> Iterator[Tracker | None]:
    """A tracker of one stage, closed behind the block; None where none is asked for."""
    if kind is None:
        yield None
        return
    accelerator = Accelerator(log_with=kind, project_dir=folder)
    accelerator.init_trackers(stage, config=dict(_flat(settings, "")))
    try:
        yield Tracker(accelerator)
    finally:
        accelerator.end_training()


def _flat(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, int | float | str | bool]]:
    """`{"sizes": {"a": 1}}` as `sizes/a`, 1; what no tracker can show is left out."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}/")
        elif isinstance(value, int | float | str | bool):
            yield f"{prefix}{name}", value
