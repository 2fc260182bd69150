"""Texts a second of a family's sizes, and what a million costs, against PyTorch as it comes. Imports torch late."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressor.export.encoding import Text
from compressor.export.family import Family
from compressor.machine import cores

_BATCH_SIZE = 32
_ROUNDS = 3


@dataclass(frozen=True)
class Rung:
    """One arrangement.

    Attributes:
        metric: of the size in that form; None where it was not evaluated.
        texts_per_second: from text to label, tokenising included.
        cost: of a million texts; None where no price was given.
    """

    title: str
    metric: float | None
    texts_per_second: float
    cost: float | None


def ladder(family: Family, texts: Sequence[Text], price_per_hour: float | None = None) -> list[Rung]:
    """Arrangements from PyTorch padded to the family's length down to the smallest int8 size on all cores.

    All are measured in turn, three rounds over the same texts; the median counts.

    Args:
        texts: whose lengths are those that will come.
        price_per_hour: of the machine, in any currency.
    """
    calls = _arrangements(family, texts)
    for call, _ in calls.values():
        call(texts[:_BATCH_SIZE])
    seconds: dict[str, list[float]] = {title: [] for title in calls}
    for _ in range(_ROUNDS):
        for title, (call, _) in calls.items():
            start = time.perf_counter()
            call(texts)
            seconds[title].append(time.perf_counter() - start)
    rungs = []
    for title, (_, metric) in calls.items():
        speed = len(texts) / sorted(seconds[title])[_ROUNDS // 2]
        cost = None if price_per_hour is None else price_per_hour / 3600 * 1e6 / speed
        rungs.append(Rung(title, metric, speed, cost))
    return rungs


_Call = tuple[Callable[[Sequence[Text]], object], float | None]


def _arrangements(family: Family, texts: Sequence[Text]) -> dict[str, _Call]:
    count = cores()
    sizes = {"largest": family.sizes[0], "smallest": family.manifest.smallest}
    length = family.manifest.max_length
    found: dict[str, _Call] = {}
    exact = sizes["largest"].metrics.get("torch")
    for title, padding in ((f"PyTorch, padded to {length}", "max_length"), ("PyTorch, padded to the batch", "longest")):
        found[f"{sizes['largest'].name} {title}"] = (
            _pytorch(family.folder, sizes["largest"].name, padding, length),
            exact,
        )
    for size in sizes.values():
        for precision in size.graphs:
            title = f"{size.name} {precision}"
            metric = size.metrics.get(precision)
            together = family.open(size.name, precision, threads=count)
            found[f"{title}, one session of {count} threads"] = together.predict, metric
            if count > 1:
                apart = family.open(size.name, precision, threads=1)
                found[f"{title}, {count} at once of one thread"] = _at_once(apart, count), metric
    return found


def _at_once(size: Any, workers: int) -> Callable[[Sequence[Text]], object]:
    return lambda texts: size.predict(texts, _BATCH_SIZE, workers=workers)


def _pytorch(folder: Path, name: str, padding: str, length: int) -> Callable[[Sequence[Text]], object]:
    """The size in PyTorch with its tokenizer, texts in the order in which they come."""
    import torch
    from transformers import AutoTokenizer

    from compressor.models import load_size

    model = load_size(folder, name)
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def call(texts: Sequence[Text]) -> None:
        with torch.inference_mode():
            for start in range(0, len(texts), _BATCH_SIZE):
                batch = list(texts[start : start + _BATCH_SIZE])
                inputs = tokenizer(batch, padding=padding, truncation=True, max_length=length, return_tensors="pt")
                model(**inputs).logits.argmax(-1)

    return call
