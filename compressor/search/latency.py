"""Milliseconds of any sub-network, from those of some that were exported and timed."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from scipy.optimize import nnls

from compressor.export.latency import interleaved, ones
from compressor.export.package import Package
from compressor.export.session import Session
from compressor.files import temporary_folder
from compressor.machine import int8_overflows
from compressor.supernet.architectures import Dimensions
from compressor.supernet.subnetworks import Subnetwork
from compressor.supernet.supernetwork import SuperNetwork
from compressor.tasks import Array

_SAMPLES = 24
_ROUNDS = 15


@dataclass(frozen=True)
class Conditions:
    """What is timed: precision of the graphs, texts at once, tokens a text, threads."""

    precision: str
    batch_size: int
    length: int
    threads: int


@dataclass(frozen=True)
class LatencyModel:
    """Milliseconds as a sum over the kept layers, of what each costs, its heads and its neurons.

    Attributes:
        base, layer, head, neuron: milliseconds, none below 0: a larger size is never predicted to be faster.
        error: mean relative error for a size that was timed and left out of the fit.
        worst: the largest such error.
    """

    base: float
    layer: float
    head: float
    neuron: float
    error: float
    worst: float

    def milliseconds(self, size: Subnetwork) -> float:
        """Predicted, for the conditions that were timed."""
        return float(np.dot(_features(size), (self.base, self.layer, self.head, self.neuron)))


def _features(size: Subnetwork) -> tuple[int, int, int, int]:
    return 1, len(size.kept), sum(size.heads), sum(size.neurons)


def fit(measured: Mapping[Subnetwork, float]) -> LatencyModel:
    """Fit milliseconds of sub-networks, small and large ones by the same relative error.

    Raises:
        ValueError: these are too few to leave one out.
    """
    if len(measured) < 6:
        raise ValueError(f"{len(measured)} sub-networks are too few to fit four numbers and check them")
    features = np.array([_features(size) for size in measured], dtype=float)
    times = np.array(list(measured.values()))
    errors = []
    for place in range(len(times)):
        others = np.arange(len(times)) != place
        found = _solve(features[others], times[others])
        errors.append(abs(features[place] @ found / times[place] - 1))
    base, layer, head, neuron = _solve(features, times)
    return LatencyModel(base, layer, head, neuron, float(np.mean(errors)), float(max(errors)))


def _solve(features: Array, times: Array) -> list[float]:
    solution, _ = nnls(features / times[:, None], np.ones(len(times)))
    return [float(value) for value in solution]


def sample(dimensions: Dimensions, seed: int) -> list[Subnetwork]:
    """Sub-networks of all depths, with other heads and neurons in every layer."""
    chance = random.Random(seed)
    found = []
    for number in range(_SAMPLES):
        depth = 1 + number % dimensions.layers
        most_heads, most_neurons = (chance.uniform(0.2, 1.0) * most for most in (dimensions.heads, dimensions.neurons))
        found.append(
            Subnetwork(
                tuple(sorted(chance.sample(range(dimensions.layers), depth))),
                tuple(chance.randint(1, max(1, round(most_heads))) for _ in range(depth)),
                tuple(chance.randint(1, max(1, round(most_neurons))) for _ in range(depth)),
            )
        )
    return found


def measure(
    supernet: SuperNetwork, names: Sequence[str], sizes: Sequence[Subnetwork], conditions: Conditions, folder: Path
) -> dict[Subnetwork, float]:
    """Export sub-networks and time them on this machine, in turn: median milliseconds.

    Args:
        names: the tokenizer's model inputs.
        folder: where the graphs lie meanwhile.
    """
    with temporary_folder(folder) as graphs:
        package = Package(supernet, list(names), graphs, reduced=int8_overflows())
        package.write_weights(conditions.precision)
        calls = {}
        for number, size in enumerate(sizes):
            path = graphs / f"{number}.onnx"
            package.write_graph(conditions.precision, size, path)
            session = Session(path, conditions.threads)
            calls[size] = partial(session.run, ones(session.inputs, conditions.batch_size, conditions.length))
        return {size: latency.median for size, latency in interleaved(calls, _ROUNDS).items()}
