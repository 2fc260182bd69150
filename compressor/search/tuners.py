"""Who suggests what to try next: NNI's tuners, in this process and without its server, or chance."""

import logging
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, Protocol

import numpy as np

from compressor.errors import CompressorError

Algorithm = Literal["tpe", "evolution", "random"]
Suggestion = dict[str, float]
SearchSpace = Mapping[str, Mapping[str, Any]]


class Tuner(Protocol):
    """Suggests parameters; each suggestion is told its value, higher is better, in any order."""

    def suggest(self) -> tuple[int, Suggestion]:
        """A number to tell the value by, and parameters."""

    def tell(self, number: int, value: float) -> None:
        """What became of a suggestion."""

    def learn(self, parameters: Suggestion, value: float) -> None:
        """What became of parameters that somebody else suggested."""


def tuner_of(algorithm: Algorithm, space: SearchSpace, seed: int) -> Tuner:
    """A tuner that repeats itself for the same seed.

    Raises:
        CompressorError: it is NNI's, and NNI is not installed.
    """
    if algorithm == "random":
        return RandomTuner(space, seed)
    try:
        from nni.algorithms.hpo.evolution_tuner import EvolutionTuner
        from nni.algorithms.hpo.tpe_tuner import TpeTuner
    except ImportError as error:
        raise CompressorError(
            f"algorithm: {algorithm} is NNI's, and nni cannot be imported here ({error}); its wheels are for x86-64 "
            "alone: use algorithm random"
        ) from error
    with quiet_nni():
        if algorithm == "tpe":
            return NniTuner(TpeTuner(optimize_mode="maximize", seed=seed), space, seed)
        return _SeededEvolution(EvolutionTuner(optimize_mode="maximize", population_size=16), space, seed)


class RandomTuner:
    """Draws every parameter by itself: the control that an algorithm has to beat."""

    def __init__(self, space: SearchSpace, seed: int) -> None:
        self._space, self._random, self._count = space, random.Random(seed), 0

    def suggest(self) -> tuple[int, Suggestion]:
        """See `Tuner`."""
        self._count += 1
        return self._count, {name: self._draw(**spec) for name, spec in self._space.items()}

    def _draw(self, _type: str, _value: list[float]) -> float:
        if _type == "choice":
            return self._random.choice(_value)
        low, high, step = _value
        return low + step * self._random.randrange(int((high - low) / step) + 1)

    def tell(self, number: int, value: float) -> None:
        """See `Tuner`; chance does not listen."""

    def learn(self, parameters: Suggestion, value: float) -> None:
        """See `Tuner`; chance does not listen."""


class NniTuner:
    """One of NNI's in-process tuners."""

    def __init__(self, tuner: Any, space: SearchSpace, seed: int) -> None:
        self._tuner, self._count = tuner, 0
        self._suggestions: dict[int, Suggestion] = {}
        tuner.update_search_space(dict(space))

    def suggest(self) -> tuple[int, Suggestion]:
        """See `Tuner`."""
        self._count += 1
        with quiet_nni():
            found = self._tuner.generate_parameters(self._count)
        # Evolution returns numpy's numbers, which no JSON file takes.
        self._suggestions[self._count] = {name: float(value) for name, value in found.items()}
        return self._count, self._suggestions[self._count]

    def tell(self, number: int, value: float) -> None:
        """See `Tuner`."""
        self._tuner.receive_trial_result(number, self._suggestions.pop(number), value)

    def learn(self, parameters: Suggestion, value: float) -> None:
        """See `Tuner`; NNI's evolution takes nothing from outside."""
        with quiet_nni():
            self._tuner.import_data([{"parameter": parameters, "value": value}])


class _SeededEvolution(NniTuner):
    """NNI's evolution draws from the interpreter's and numpy's global generators, and cannot be given a seed."""

    def __init__(self, tuner: Any, space: SearchSpace, seed: int) -> None:
        super().__init__(tuner, space, seed)
        self._states = random.Random(seed).getstate()
        tuner.random_state = np.random.RandomState(seed % 2**32)
        tuner.population = []
        for _ in range(tuner.population_size):
            tuner._random_generate_individual()

    def suggest(self) -> tuple[int, Suggestion]:
        """See `Tuner`."""
        outside = random.getstate()
        random.setstate(self._states)
        try:
            return super().suggest()
        finally:
            self._states = random.getstate()
            random.setstate(outside)


@contextmanager
def quiet_nni() -> Iterator[None]:
    """Nothing of what NNI tells of each of its steps."""
    logger = logging.getLogger("nni")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
