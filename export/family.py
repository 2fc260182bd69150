"""A family where it serves: its sizes, a choice among them, and answers. Imports onnxruntime, tokenizers and numpy."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Encoding

from compressor.errors import CompressorError
from compressor.export.adaptive import Adaptive, frontier
from compressor.export.choice import Choice, Need, choose
from compressor.export.encoding import Encoder, Text
from compressor.export.latency import interleaved, ones
from compressor.export.manifest import WEIGHTS, Latency, Manifest, Size, checked_file, read_manifest
from compressor.export.session import Array, Session
from compressor.machine import describe_machine, int8_overflows


@dataclass(frozen=True)
class Prediction:
    """What a size says of a text.

    Attributes:
        label: the most likely one; None for regression.
        score: its probability; for regression the number itself.
        scores: probability of every label; empty for regression.
        truncated: the text was longer than the family reads, and the rest was left out.
    """

    label: str | None
    score: float
    scores: dict[str, float]
    truncated: bool


class Family:
    """The sizes of one exported family.

    Example:
        >>> family = Family.load("runs/mine/family")  # doctest: +SKIP
        >>> print(family.sizes)  # doctest: +SKIP
        >>> size = family.open(family.pick(latency_ms=5, metric_drop=0.01))  # doctest: +SKIP
        >>> size.predict(["a gripping drama"])[0].label  # doctest: +SKIP
        'positive'
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self._weights: dict[str, Array] = {}
        for file in manifest.tokenizer:
            checked_file(folder, manifest, file)
        self._encoder = Encoder(folder, manifest.max_length, manifest.task.get("pair"))

    @classmethod
    def load(cls, folder: str | Path) -> "Family":
        """A family from its folder. Nothing of the weights is read before a size is opened.

        Raises:
            CompressorError: there is no family, it is of another version, or its tokenizer was changed.
        """
        return cls(Path(folder), read_manifest(Path(folder)))

    @property
    def sizes(self) -> "Sizes":
        """What each size is, scores and costs, the largest first; printed, a table."""
        return Sizes(self.manifest.sizes)

    def pick(self, **needs: Any) -> Choice:
        """The best size that meets what is needed: see `Need` for the arguments.

        Raises:
            CompressorError: no size does, or it was not measured what is asked for.
        """
        need = Need(**needs)
        if need.precision is None and not self._computes_int8():
            need = replace(need, precision="fp32")
        return choose(self.manifest, need)

    def timed(
        self,
        *,
        threads: int = 1,
        batch_size: int = 1,
        length: int | None = None,
        rounds: int = 30,
        teacher: Callable[[], object] | None = None,
        after_round: Callable[[], None] = lambda: None,
    ) -> "Family":
        """The same family with the latencies of this machine, all sizes in turn, round after round.

        Args:
            threads: of one call.
            length: tokens of a text; None takes as many as the family reads.
            teacher: a call of the teacher in PyTorch, timed among them.
        """
        length = length or self.manifest.max_length
        if length > self.manifest.max_length:
            raise CompressorError(f"length: {length} is more than the {self.manifest.max_length} that the family reads")
        calls: dict[tuple[str, str], Callable[[], object]] = {} if teacher is None else {("teacher", "torch"): teacher}
        for size in self.sizes:
            for precision in size.graphs:
                session = self._session(size, precision, threads)
                calls[size.name, precision] = partial(session.run, ones(session.inputs, batch_size, length))
        found: dict[str, dict[str, Latency]] = {}
        for (name, precision), latency in interleaved(calls, rounds, after_round).items():
            found.setdefault(name, {})[precision] = latency
        conditions = {
            "batch_size": batch_size,
            "length": length,
            "threads": threads,
            "rounds": rounds,
            "machine": describe_machine(),
        }
        return Family(self.folder, self.manifest.with_latencies(conditions, found))

    def open(
        self, size: str | Choice, precision: str | None = None, *, threads: int = 1, thrifty: bool = False
    ) -> "OpenSize":
        """A size that answers.

        Args:
            size: its name, or what `pick` chose.
            precision: `fp32` or `int8`; None takes the chosen one, or int8 where the family has it.
            threads: that one call uses.
            thrifty: for many sizes that are open at once: all of them read the same weights in memory and take next
                to none of their own, at some cost in speed.

        Raises:
            CompressorError: there is no such size or precision, a file was changed, or this machine cannot run it.
        """
        if isinstance(size, Choice):
            return self.open(size.size.name, precision or size.precision, threads=threads, thrifty=thrifty)
        entry = self.manifest.size(size)
        precision = precision or self._default_precision()
        if precision not in entry.graphs:
            raise CompressorError(f"precision: the family has no {precision!r}; it has {', '.join(entry.graphs)}")
        if precision == "int8" and not self._computes_int8():
            raise CompressorError(
                "precision: this processor has no VNNI, and int8 products of 8 bits overflow on it; take fp32, or "
                "export the family on such a machine"
            )
        session = self._session(entry, precision, threads, thrifty)
        return OpenSize(entry, precision, session, self._encoder, self.manifest.task)

    def open_all(self, precision: str | None = None, *, threads: int = 1) -> dict[str, "OpenSize"]:
        """Every size, in the memory of one."""
        return {size.name: self.open(size.name, precision, threads=threads, thrifty=True) for size in self.sizes}

    def adaptive(
        self,
        latency_ms: float,
        precision: str | None = None,
        *,
        sizes: Sequence[str] | None = None,
        workers: int = 1,
        thrifty: bool = False,
    ) -> Adaptive:
        """Answers in time under load: from the largest size that still meets the latency, and back up when load falls.

        Args:
            sizes: that may answer; None takes all that no other beats in both score and speed.
            workers: texts that are answered at once, each by one thread.
            thrifty: see `open`.
        """
        precision = precision or self._default_precision()
        names = sizes or frontier(self.sizes, precision)
        return Adaptive({name: self.open(name, precision, thrifty=thrifty) for name in names}, latency_ms, workers)

    def _default_precision(self) -> str:
        return "int8" if "int8" in self.sizes[0].graphs and self._computes_int8() else "fp32"

    def _computes_int8(self) -> bool:
        """Whether this processor computes the family's int8 products rightly."""
        return not int8_overflows() or bool(self.manifest.int8.get("reduced_range"))

    def _session(self, size: Size, precision: str, threads: int, thrifty: bool = False) -> Session:
        graph = checked_file(self.folder, self.manifest, size.graphs[precision])
        return Session(graph, threads, weights=self._weights_of(precision), thrifty=thrifty)

    def _weights_of(self, precision: str) -> dict[str, Array]:
        """The bytes of the file that the graphs of a precision read, mapped once."""
        if self.manifest.layout != "shared":
            return {}
        name = WEIGHTS[precision]
        if name not in self._weights:
            path = checked_file(self.folder, self.manifest, name)
            self._weights[name] = np.memmap(path, dtype=np.uint8, mode="r")
        return {name: self._weights[name]}


class Sizes(tuple[Size, ...]):
    """The sizes of a family, which print as a table."""

    def __str__(self) -> str:
        rows = [["size", *(f"{kind} {what}" for kind in self[0].graphs for what in ("score", "ms", "MiB"))]]
        for size in self:
            row = [size.name]
            for kind in size.graphs:
                metric, milliseconds = size.metrics.get(kind), size.latency_ms.get(kind)
                row.append("" if metric is None else f"{100 * metric:.1f}")
                row.append("" if milliseconds is None else f"{milliseconds:.2f}")
                row.append(f"{size.bytes[kind] / 2**20:.1f}")
            rows.append(row)
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join("  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) for row in rows)


class OpenSize:
    """One size that answers; several threads may ask at once.

    Attributes:
        size: what it is, scores and costs.
        precision: `fp32` or `int8`.
        encoder: what cuts its texts.
    """

    def __init__(self, size: Size, precision: str, session: Session, encoder: Encoder, task: dict[str, Any]) -> None:
        self.size, self.precision = size, precision
        self.encoder = encoder
        self._session, self._task = session, task

    def predict(self, texts: Text | Sequence[Text], batch_size: int = 32, *, workers: int = 1) -> list[Prediction]:
        """What the size says of each text, in their order.

        Args:
            texts: one or many; a pair is a tuple of two.
            workers: batches that are answered at once. For many texts, as many as there are cores, with a size opened
                for one thread, is faster than one batch at a time on all cores.

        Raises:
            CompressorError: a text is empty or none.
        """
        texts = [texts] if isinstance(texts, str | tuple) else list(texts)
        return self.answer(self.encoder.encode(texts), batch_size, workers=workers)

    def answer(self, encodings: Sequence[Encoding], batch_size: int = 32, *, workers: int = 1) -> list[Prediction]:
        """What the size says of texts that `encoder` has cut already."""
        predictions: list[Prediction | None] = [None] * len(encodings)

        def run(batch: tuple[list[int], dict[str, Array]]) -> None:
            for place, logits in zip(batch[0], self._session.run(batch[1]), strict=True):
                predictions[place] = self._prediction(logits, bool(encodings[place].overflowing))

        with ThreadPoolExecutor(workers) if workers > 1 else nullcontext() as pool:
            answered = (pool.map if pool else map)(run, self.encoder.batches(encodings, batch_size))
            for _ in answered:
                pass
        return [prediction for prediction in predictions if prediction]

    def run_ones(self, length: int) -> None:
        """Answer a text of so many tokens, whatever they are: for timing."""
        self._session.run(ones(self._session.inputs, 1, length))

    def _prediction(self, logits: Array, truncated: bool) -> Prediction:
        labels = self._task["id2label"]
        if self._task["problem_type"] == "regression":
            return Prediction(None, float(logits[0]), {}, truncated)
        likely = np.exp(logits - logits.max())
        likely /= likely.sum()
        scores = {labels[str(place)]: float(value) for place, value in enumerate(likely)}
        label = max(scores, key=scores.__getitem__)
        return Prediction(label, scores[label], scores, truncated)
