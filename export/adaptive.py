"""Answers that stay in time under load, by smaller sizes. Imports no torch."""

import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from tokenizers import Encoding

from compressor.errors import CompressorError
from compressor.export.encoding import Text
from compressor.export.manifest import Size

if TYPE_CHECKING:
    from compressor.export.family import OpenSize, Prediction

# Part of the latency that a text may be expected to take: what is left is for what no estimate knows.
_MARGIN = 0.8
# How much a new measurement counts against what was known of this machine's speed.
_FORGETTING = 0.1


@dataclass(frozen=True)
class Answer:
    """What was said of a text.

    Attributes:
        size: name of the one that answered.
        milliseconds: from the asking to the answer.
    """

    prediction: "Prediction"
    size: str
    milliseconds: float


@dataclass
class _Request:
    encoding: Encoding
    asked: float
    answer: "Future[Answer]"


class Adaptive:
    """Answers each text from the largest size with which it, and all that wait behind it, will be in time.

    Each worker answers one text at a time. When it takes one, it knows how long that has waited, and how many texts and
    workers there are: a size is fast enough if this text will be in time, and if the last one in the queue would be,
    were all answered by that size. Where none is, the smallest answers. Seconds of a size at a number of tokens are
    measured at the start and corrected by every answer, since other work on the machine changes its speed.

    Args:
        sizes: the largest first.
        latency_ms: from the asking to the answer.
        workers: threads that answer.

    Raises:
        CompressorError: not even the smallest size meets the latency on a machine that does nothing else.
    """

    def __init__(self, sizes: Mapping[str, "OpenSize"], latency_ms: float, workers: int = 1) -> None:
        self._sizes = dict(sizes)
        self._seconds = latency_ms / 1000
        self._workers = workers
        self._encoder = next(iter(self._sizes.values())).encoder
        self._curves = {name: _Curve(size, self._encoder.max_length) for name, size in self._sizes.items()}
        longest = self._encoder.max_length
        fastest = 1000 * min(curve.seconds(longest) for curve in self._curves.values())
        if fastest > latency_ms:
            raise CompressorError(
                f"latency_ms: {latency_ms:g} are allowed, and the fastest size takes {fastest:.2f} here "
                f"for {longest} tokens"
            )
        self._pace = 1.0
        self._queue: deque[_Request] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(workers)]
        for thread in self._threads:
            thread.start()

    def submit(self, text: Text) -> "Future[Answer]":
        """Ask; the answer comes later.

        Raises:
            CompressorError: the text is empty, or the service was closed.
        """
        (encoding,) = self._encoder.encode([text])
        request = _Request(encoding, time.perf_counter(), Future())
        with self._changed:
            if self._closed:
                raise CompressorError("the service is closed")
            self._queue.append(request)
            self._changed.notify()
        return request.answer

    def predict(self, texts: Text | Sequence[Text]) -> list[Answer]:
        """Ask for one or many, and wait."""
        texts = [texts] if isinstance(texts, str | tuple) else list(texts)
        return [answer.result() for answer in [self.submit(text) for text in texts]]

    def close(self) -> None:
        """Answer what was asked, then end."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> "Adaptive":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _work(self) -> None:
        while (taken := self._take()) is not None:
            request, waiting = taken
            try:
                request.answer.set_result(self._answer(request, waiting))
            except BaseException as error:  # Whoever asked is told, and the worker goes on.
                request.answer.set_exception(error)

    def _take(self) -> tuple[_Request, int] | None:
        with self._changed:
            while not self._queue:
                if self._closed:
                    return None
                self._changed.wait()
            return self._queue.popleft(), len(self._queue)

    def _answer(self, request: _Request, waiting: int) -> Answer:
        begun = time.perf_counter()
        tokens = len(request.encoding.ids)
        name = self._choose(tokens, begun - request.asked, waiting)
        (prediction,) = self._sizes[name].answer([request.encoding])
        ended = time.perf_counter()
        expected = self._curves[name].seconds(tokens)
        self._pace += _FORGETTING * ((ended - begun) / expected - self._pace)
        return Answer(prediction, name, 1000 * (ended - request.asked))

    def _choose(self, tokens: int, waited: float, waiting: int) -> str:
        allowed = _MARGIN * self._seconds
        for name, curve in self._curves.items():
            seconds = self._pace * curve.seconds(tokens)
            in_time = waited + seconds <= allowed
            those_behind = seconds * (1 + waiting / self._workers) <= allowed
            if in_time and those_behind:
                return name
        return min(self._curves, key=lambda name: self._curves[name].seconds(tokens))


def frontier(sizes: Iterable[Size], precision: str) -> list[str]:
    """Names of those that no other beats in both score and speed, the best one first.

    Speed is what a size computes; where nothing was scored, so is the score.
    """

    def score(size: Size) -> float:
        return size.metrics.get(precision, size.macs)

    kept: list[Size] = []
    for size in sorted(sizes, key=lambda size: (-score(size), size.macs)):
        if all(size.macs < other.macs for other in kept):
            kept.append(size)
    return [size.name for size in kept]


class _Curve:
    """Seconds that a size takes for a text of so many tokens: measured for some, in between on straight lines."""

    _ROUNDS = 5

    def __init__(self, size: "OpenSize", longest: int) -> None:
        lengths = sorted({min(length, longest) for length in (1, 8, 16, 32, 64, 128, 256, 512)})
        measured = [self._median(size, length) for length in lengths]
        self._seconds = np.interp(np.arange(longest + 1), lengths, measured).tolist()

    def seconds(self, tokens: int) -> float:
        """For one text."""
        return float(self._seconds[tokens])

    def _median(self, size: "OpenSize", length: int) -> float:
        found = []
        for _ in range(self._ROUNDS):
            start = time.perf_counter()
            size.run_ones(length)
            found.append(time.perf_counter() - start)
        return float(np.median(found))
