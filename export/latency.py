"""Latency on this machine, of many models in one interleaved run."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from compressor.export.manifest import Latency
from compressor.export.session import Array

WARM_UP = 3
Key = TypeVar("Key")


def ones(names: Sequence[str], batch_size: int, length: int) -> dict[str, Array]:
    """Inputs of a full batch without padding: every id and mask entry 1 (token types 0)."""
    return {name: np.full((batch_size, length), 0 if name == "token_type_ids" else 1, dtype=np.int64) for name in names}


def interleaved(
    calls: Mapping[Key, Callable[[], object]], rounds: int, after_round: Callable[[], None] = lambda: None
) -> dict[Key, Latency]:
    """Latency of each call; every round runs all of them once, so that noise hits all alike."""
    for call in calls.values():
        for _ in range(WARM_UP):
            call()
    seconds: dict[Key, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
        after_round()
    return {
        name: Latency(*(1000 * float(value) for value in np.percentile(values, (50, 95))))
        for name, values in seconds.items()
    }
