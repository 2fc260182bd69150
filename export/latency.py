"""Latency on this machine, of many models in one interleaved run."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from compressor.export.session import Array, open_session, run_session

WARM_UP = 3


def ones(names: Sequence[str], batch_size: int, length: int) -> dict[str, Array]:
    """Inputs of a full batch without padding: every id and mask entry 1 (token types 0)."""
    return {name: np.full((batch_size, length), 0 if name == "token_type_ids" else 1, dtype=np.int64) for name in names}


def session_call(path: Path, inputs: Mapping[str, Array], threads: int) -> Callable[[], object]:
    """An ONNX file as a function without arguments."""
    session = open_session(path, threads)
    return lambda: run_session(session, inputs)


def median_latencies(
    calls: Mapping[str, Callable[[], object]], rounds: int, after_round: Callable[[], None]
) -> dict[str, float]:
    """Median seconds of each call; every round runs all of them once, so that noise hits all alike."""
    for call in calls.values():
        for _ in range(WARM_UP):
            call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
        after_round()
    return {name: statistics.median(values) for name, values in seconds.items()}
