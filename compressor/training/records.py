"""What is seen of a stage while it trains: `metrics.jsonl`, progress, and whoever listens, such as a tracker."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compressor.progress import Task as Shown

# Is given every line of `metrics.jsonl`.
Listener = Callable[[Mapping[str, Any]], None]


@dataclass
class Records:
    """Means of losses over the steps between two lines.

    Attributes:
        file: a JSON-lines file; None in processes that write nothing.
        sizes: names of the sub-networks.
        terms: names of the objective's terms.
        examples: of one step, over all processes.
        shown: where progress is shown.
        listeners: that lines are handed on to.
    """

    file: Path | None
    sizes: Sequence[str]
    terms: Sequence[str]
    examples: int
    shown: Shown
    listeners: Sequence[Listener] = ()
    _sums: Tensor | None = None
    _counts: dict[str, int] = field(default_factory=dict)
    _steps: int = 0
    _since: float = field(default_factory=time.monotonic)

    def add(self, losses: Tensor, trained: Sequence[str]) -> None:
        """Losses [sizes, terms] of a step, and the names of the sizes that it trained; nothing waits for the device."""
        self._sums = losses.clone() if self._sums is None else self._sums.add_(losses)
        self._steps += 1
        for name in trained:
            self._counts[name] = self._counts.get(name, 0) + 1

    def write(self, place: Mapping[str, Any]) -> None:
        """One line: means since the last one. `loss` is the sum over sizes, `terms` too."""
        if self._sums is None:
            return
        sums = self._sums.tolist()
        means = {
            name: [value / self._counts[name] for value in row]
            for name, row in zip(self.sizes, sums, strict=True)
            if self._counts.get(name)
        }
        sizes = {name: sum(row) for name, row in means.items()}
        terms = {term: sum(row[index] for row in means.values()) for index, term in enumerate(self.terms)}
        rate = self.examples * self._steps / max(time.monotonic() - self._since, 1e-9)
        losses = {"loss": sum(sizes.values()), "terms": terms, "sizes": sizes}
        self._append({**place, "examples_per_second": round(rate, 2), **losses})
        self.shown.note(f"loss {losses['loss'] / len(sizes):.4f}, {rate:.0f} examples/s")
        self._sums, self._counts, self._steps = None, {}, 0
        self._since = time.monotonic()

    def write_scores(self, step: int, scores: Mapping[str, float], best: bool) -> None:
        """One line for what a monitor found."""
        mean = sum(scores.values()) / len(scores)
        self._append({"step": step, "monitor": {"mean": mean, "best": best, "sizes": dict(scores)}})

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: the sums since the last line, and how long the file is."""
        return {
            "sums": self._sums,
            "counts": dict(self._counts),
            "bytes": self.file.stat().st_size if self.file and self.file.is_file() else 0,
        }

    def restore(self, state: Mapping[str, Any] | None, device: torch.device) -> None:
        """Go back to a checkpoint (None: to the beginning): lines that were written after it are cut off."""
        if state:
            self._sums = None if state["sums"] is None else state["sums"].to(device)
            self._counts = dict(state["counts"])
        if self.file and self.file.is_file():
            with self.file.open("r+b") as file:
                file.truncate(state["bytes"] if state else 0)

    def _append(self, line: Mapping[str, Any]) -> None:
        if self.file:
            with self.file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        for listen in self.listeners:
            listen(line)
