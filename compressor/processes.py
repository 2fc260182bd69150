"""The processes of a run: one, or as many as `torchrun` or `accelerate launch` started."""

from datetime import timedelta

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor

# The others wait while the main process exports, measures or evaluates: hours, not the usual ten minutes.
_PATIENCE = timedelta(days=7)


class Processes:
    """Which of the processes this one is, the device it computes on, and what they do together.

    Attributes:
        rank: from 0.
        count: 1 where no launcher was used.
        device: of this process.
    """

    def __init__(self) -> None:
        # accelerate takes a launched process without a GPU for a lone one unless it is told.
        state = PartialState(cpu=not torch.accelerator.is_available(), timeout=_PATIENCE)
        self.rank: int = state.process_index
        self.count: int = state.num_processes
        self.device: torch.device = state.device
        # What the host must know (shall we stop?) is asked beside the device's queue, not through it.
        self._host = dist.new_group(backend="gloo", timeout=_PATIENCE) if self.count > 1 else None

    @property
    def main(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def wait(self) -> None:
        """Until every process has come here."""
        if self._host is not None:
            dist.barrier(group=self._host)

    def sum_(self, tensor: Tensor) -> None:
        """Sum of all processes' tensors, in place."""
        if self._host is not None:
            dist.all_reduce(tensor)

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process; all get the same answer."""
        if self._host is None:
            return flag
        flags = torch.tensor(int(flag))
        dist.all_reduce(flags, op=dist.ReduceOp.MAX, group=self._host)
        return bool(flags)
