"""The search itself: suggestions for every latency in turn, scored together, each one logged."""

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from compressor.search.latency import LatencyModel
from compressor.search.scoring import Scorer
from compressor.search.space import Candidate, Space
from compressor.search.tuners import Suggestion, Tuner
from compressor.supernet.subnetworks import Subnetwork


class Evaluations:
    """Scores of sub-networks, each one logged; what the log holds already is not scored again.

    Args:
        latency: gives the milliseconds of a sub-network.
        log: a line of JSON for every evaluation.
    """

    def __init__(self, latency: LatencyModel, scorer: Scorer, log: Path) -> None:
        self._latency, self._scorer, self._log = latency, scorer, log
        self._known: dict[Subnetwork, Candidate] = {}
        if log.is_file():
            # A line that a power cut left half-written has no end.
            whole, end, _ = log.read_text().rpartition("\n")
            log.write_text(whole + end)
            for line in whole.splitlines():
                candidate = _read(json.loads(line))
                self._known[candidate.size] = candidate

    @property
    def known(self) -> list[Candidate]:
        """Everything that was scored, in that order."""
        return list(self._known.values())

    def of(self, sizes: Iterable[Subnetwork]) -> dict[Subnetwork, Candidate]:
        """Score sub-networks, those that are not known together."""
        sizes = list(sizes)
        new = {str(place): size for place, size in enumerate(dict.fromkeys(sizes)) if size not in self._known}
        if new:
            scores = self._scorer.score(new)
            with self._log.open("a") as file:
                for name, size in new.items():
                    milliseconds, score = self._latency.milliseconds(size), scores[name]
                    candidate = Candidate(size, milliseconds, score.metric, score.loss, self._scorer.rows)
                    self._known[size] = candidate
                    file.write(json.dumps(describe(candidate)) + "\n")
        return {size: self._known[size] for size in sizes}


def search(
    space: Space,
    evaluations: Evaluations,
    tuners: Mapping[float, Tuner],
    cost: Callable[[Subnetwork], float],
    known: Iterable[Suggestion],
    count: int,
    minutes: float | None,
    advance: Callable[[], None],
) -> None:
    """Evaluate what tuners suggest until that is enough, or the time is up.

    Every latency has a tuner of its own, which learns from what became of its suggestions; one suggestion of each is
    scored together with those of the others. A search that was cut off goes through the same suggestions to where it
    was, without scoring them.

    Args:
        tuners: by the milliseconds that their sub-networks may take.
        cost: milliseconds of a sub-network.
        known: proportions to begin with, at each latency; they count as suggestions.
        count: of suggestions, those that come again included.
        advance: is called after each.
    """
    end = time.monotonic() + 60 * minutes if minutes else float("inf")
    done = 0
    for suggestion in known:
        sizes = {target: space.decode(suggestion, cost, target) for target in tuners}
        scored = evaluations.of(size for size in sizes.values() if size)
        for target, size in sizes.items():
            tuners[target].learn(suggestion, _value(size, scored))
            done += 1
            advance()
    while done < count and time.monotonic() < end:
        asked = {target: tuner.suggest() for target, tuner in tuners.items()}
        sizes = {target: space.decode(suggestion, cost, target) for target, (_, suggestion) in asked.items()}
        scored = evaluations.of(size for size in sizes.values() if size)
        for target, size in sizes.items():
            tuners[target].tell(asked[target][0], _value(size, scored))
            done += 1
            advance()


def _value(size: Subnetwork | None, scored: Mapping[Subnetwork, Candidate]) -> float:
    """Proportions that fit no budget are worth less than any answer."""
    return scored[size].score if size else -1.0


def describe(candidate: Candidate) -> dict[str, Any]:
    """A candidate as JSON."""
    found = asdict(candidate)
    return {**found.pop("size"), **found}


def _read(line: dict[str, Any]) -> Candidate:
    size = Subnetwork(*(tuple(line.pop(name)) for name in ("kept", "heads", "neurons")))
    return Candidate(size, **line)


def finalists(candidates: Sequence[Candidate], targets: Iterable[float], count: int) -> list[Subnetwork]:
    """The best so many of each latency."""
    found = []
    for target in targets:
        in_time = [candidate for candidate in candidates if candidate.milliseconds <= target]
        found += sorted(in_time, key=lambda candidate: -candidate.score)[:count]
    return list(dict.fromkeys(candidate.size for candidate in found))


def winners(candidates: Sequence[Candidate], grid: Sequence[Candidate], targets: Iterable[float]) -> list[Candidate]:
    """The best of each latency where it beats the best of the grid that is in time, the slowest first."""
    found: dict[Subnetwork, Candidate] = {}
    for target in sorted(targets, reverse=True):
        best, known = (
            max((one for one in some if one.milliseconds <= target), key=lambda one: one.score, default=None)
            for some in (candidates, grid)
        )
        if best and (known is None or best.score > known.score):
            found[best.size] = best
    return list(found.values())
