"""Which size to take: the one that meets what is needed, and why not the next. Imports no torch."""

from collections.abc import Iterator
from dataclasses import dataclass

from compressor.errors import CompressorError
from compressor.export.manifest import Manifest, Size


@dataclass(frozen=True)
class Need:
    """What a size must meet; at least one of the first three.

    Attributes:
        latency_ms: milliseconds that a text may take, under the conditions that the family was measured in.
        metric_drop: that the metric may be below the teacher's, as a fraction (0.01 is one point).
        bytes: that graph and weights of the size may have.
        threads: that the latencies must have been measured with.
        precision: `fp32` or `int8` alone.
    """

    latency_ms: float | None = None
    metric_drop: float | None = None
    bytes: int | None = None
    threads: int | None = None
    precision: str | None = None


@dataclass(frozen=True)
class Choice:
    """A size in a precision, and the words that explain it.

    Attributes:
        why: lines: what was chosen, then why not the next better one and not the next faster one.
    """

    size: Size
    precision: str
    why: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(self.why)


@dataclass(frozen=True)
class _Candidate:
    size: Size
    precision: str
    metric: float | None
    drop: float | None
    milliseconds: float | None

    @property
    def name(self) -> str:
        return f"{self.size.name} {self.precision}"

    @property
    def bytes(self) -> int:
        return self.size.bytes[self.precision]

    def misses(self, need: Need) -> Iterator[str]:
        """What it does not meet, in words."""
        if need.latency_ms is not None and (self.milliseconds or 0) > need.latency_ms:
            yield f"takes {self.milliseconds:.2f} ms ({need.latency_ms:g} are allowed)"
        if need.metric_drop is not None and (self.drop or 0) > need.metric_drop + 1e-9:
            yield f"loses {100 * (self.drop or 0):.2f} points ({100 * need.metric_drop:g} are allowed)"
        if need.bytes is not None and self.bytes > need.bytes:
            yield f"has {self.bytes / 2**20:.1f} MiB ({need.bytes / 2**20:.1f} are allowed)"

    def describe(self) -> str:
        parts = []
        if self.metric is not None and self.drop is not None:
            side = "below" if self.drop >= 0 else "above"
            parts.append(f"scores {100 * self.metric:.2f}, {100 * abs(self.drop):.2f} points {side} the teacher")
        if self.milliseconds is not None:
            parts.append(f"{self.milliseconds:.2f} ms")
        return ", ".join([*parts, f"{self.bytes / 2**20:.1f} MiB"])


def choose(family: Manifest, need: Need) -> Choice:
    """The best size that meets a need.

    Among those that meet it: with a latency or a number of bytes the one that scores best, with nothing but a
    metric the fastest one; equal ones by speed, then by bytes.

    Raises:
        CompressorError: none meets it (the message names the nearest), or what is asked for was not measured.
    """
    _check(family, need)
    candidates = [
        _candidate(family, size, precision)
        for size in family.sizes
        for precision in size.graphs
        if need.precision in (None, precision)
    ]
    meeting = [candidate for candidate in candidates if not any(candidate.misses(need))]
    if not meeting:
        nearest = min(candidates, key=lambda candidate: (len(list(candidate.misses(need))), _slowness(candidate)))
        missing = " and ".join(nearest.misses(need))
        raise CompressorError(f"no size meets this: {nearest.name}, the nearest, {missing}; {nearest.describe()}")
    if need.latency_ms is None and need.bytes is None:
        best = min(meeting, key=_slowness)
    else:
        best = min(meeting, key=lambda candidate: (-(candidate.metric or 0), *_slowness(candidate)))
    return Choice(best.size, best.precision, tuple(_reasons(best, candidates, need)))


def _reasons(best: _Candidate, candidates: list[_Candidate], need: Need) -> Iterator[str]:
    yield f"{best.name}: {best.describe()}"
    better = [other for other in candidates if (other.metric or 0) > (best.metric or 0)]
    if better:
        other = min(better, key=lambda candidate: candidate.metric or 0)
        missing = " and ".join(other.misses(need)) or "is slower, and no better score was asked for"
        yield f"not {other.name}, which scores {100 * (other.metric or 0):.2f}: it {missing}"
    faster = [other for other in candidates if _slowness(other) < _slowness(best)]
    if faster:
        other = max(faster, key=_slowness)
        missing = " and ".join(other.misses(need)) or "scores no better"
        yield f"not {other.name}, which is the next faster one ({other.describe()}): it {missing}"


def _slowness(candidate: _Candidate) -> tuple[float, int]:
    milliseconds = candidate.milliseconds
    # What was not timed is ordered by what it computes.
    return (milliseconds if milliseconds is not None else float(candidate.size.macs), candidate.bytes)


def _candidate(family: Manifest, size: Size, precision: str) -> _Candidate:
    metric, best = size.metrics.get(precision), family.teacher.get("metrics", {}).get("torch")
    drop = best - metric if metric is not None and best is not None else None
    return _Candidate(size, precision, metric, drop, size.latency_ms.get(precision))


def _check(family: Manifest, need: Need) -> None:
    if need.latency_ms is None and need.metric_drop is None and need.bytes is None:
        raise CompressorError("pick: say what is needed: latency_ms, metric_drop or bytes")
    known = {precision for size in family.sizes for precision in size.graphs}
    if need.precision is not None and need.precision not in known:
        raise CompressorError(f"precision: the family has no {need.precision!r}; it has {', '.join(sorted(known))}")
    if need.metric_drop is not None and not all(size.metrics for size in family.sizes):
        raise CompressorError("metric_drop: the family was not evaluated; run its recipe with the stage evaluate")
    timed = family.benchmark.get("threads")
    if need.latency_ms is not None and timed is None:
        raise CompressorError("latency_ms: the family was not timed; `compressor bench` times it on this machine")
    if need.threads is not None and need.threads != timed:
        raise CompressorError(
            f"threads: the latencies were measured with {timed}, not with {need.threads}; `compressor bench --threads "
            f"{need.threads}` measures anew"
        )
