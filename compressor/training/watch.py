"""Stops a stage whose losses are no numbers any more, and tells where it happened."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from compressor.errors import CompressorError

# A loss so many times the first ones (or 1, if they are smaller) has left the region in which anything is learnt.
EXPLOSION = 1000.0


@dataclass(frozen=True)
class Place:
    """Where in a stage a step stands.

    Attributes:
        step: from 1.
        epoch: from 1.
        rows: of the training data that its batch holds, numbered from 1.
    """

    step: int
    epoch: int
    rows: Sequence[int]

    def __str__(self) -> str:
        shown = ", ".join(map(str, self.rows[:8])) + (", ..." if len(self.rows) > 8 else "")
        return f"step {self.step} (epoch {self.epoch}, training rows {shown})"


@dataclass
class Watch:
    """Remembers losses and gradient norms on the device until they are looked at.

    Attributes:
        sizes: names of the sub-networks, in the order of the losses.
        usual: mean loss of the sizes at the first step; 0 until it is known.
    """

    sizes: Sequence[str]
    usual: float = 0.0
    _seen: list[tuple[Place, Tensor, Tensor]] = field(default_factory=list)

    def note(self, place: Place, losses: Tensor, norm: Tensor) -> None:
        """Losses [sizes] (0 for a size that the step left out) and the norm of the gradient of a step."""
        self._seen.append((place, losses.detach().clone(), norm.detach()))

    def check(self) -> None:
        """Look at everything noted since the last look.

        Raises:
            CompressorError: with step, sub-network and batch of the first loss that is NaN, infinite or exploded.
        """
        if not self._seen:
            return
        values = torch.stack([torch.cat([losses, norm.reshape(1)]) for _, losses, norm in self._seen]).tolist()
        if not self.usual and all(map(math.isfinite, values[0])):
            present = [value for value in values[0][:-1] if value > 0]
            self.usual = sum(present) / len(present) if present else 0.0
        for (place, _, _), row in zip(self._seen, values, strict=True):
            self._check_step(place, row[:-1], row[-1])
        self._seen.clear()

    def _check_step(self, place: Place, losses: list[float], norm: float) -> None:
        for name, loss in zip(self.sizes, losses, strict=True):
            if not math.isfinite(loss) or loss > EXPLOSION * max(self.usual, 1.0):
                raise CompressorError(f"the loss of {name} is {loss:.4g} at {place}{self._advice()}")
        if not math.isfinite(norm):
            raise CompressorError(f"the gradient's norm is {norm} at {place}, its losses are finite{self._advice()}")

    def _advice(self) -> str:
        began = f"; it began at {self.usual:.4g}" if self.usual else ""
        return f"{began}; a smaller learning_rate or smaller weights of the objective may help"
