"""The gradients of a step, and its losses, in one piece of memory."""

from collections.abc import Sequence

import torch
from torch import Tensor

from compressor.processes import Processes

# Numbers that every gradient's start is rounded up to: aligned for any vector instruction.
_ALIGNMENT = 32


class Gradients:
    """Gives parameters gradients that lie one behind the other, so that they are zeroed and reduced as one tensor.

    Args:
        parameters: floating-point parameters on one device.
        losses: how many losses travel with the gradients when processes add theirs up.

    Attributes:
        losses: [losses], written by each process, the sum over all of them after `reduce`.
    """

    def __init__(self, parameters: Sequence[Tensor], losses: int) -> None:
        self._parameters = parameters
        starts, end = [], 0
        for parameter in parameters:
            starts.append(end)
            end += -(-parameter.numel() // _ALIGNMENT) * _ALIGNMENT
        first = parameters[0]
        self._all = torch.zeros(end + losses, dtype=first.dtype, device=first.device)
        self.losses = self._all[end:]
        for parameter, start in zip(parameters, starts, strict=True):
            parameter.grad = self._all[start : start + parameter.numel()].view_as(parameter)

    def zero(self) -> None:
        """Everything to 0; sub-networks add to it."""
        self._all.zero_()

    def reduce(self, processes: Processes) -> None:
        """Sum over all processes: one call a step, whatever the number of sub-networks."""
        processes.sum_(self._all)

    def clip(self, most: float) -> Tensor:
        """Scale the gradients so that their norm is at most this; the norm before, a scalar on the device."""
        return torch.nn.utils.clip_grad_norm_(self._parameters, most)
