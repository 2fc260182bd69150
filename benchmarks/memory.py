"""The memory that a call allocates."""

from collections.abc import Callable

import numpy as np
import torch
from torch.profiler import profile


def peak_bytes(call: Callable[[], object], device: torch.device) -> int:
    """The most that a call has allocated at a time, beside what was there before it."""
    with profile(profile_memory=True) as recorded:
        call()
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    kept = [event for event in events if event.device_type().name == device.type.upper()]
    return int(max(np.cumsum([event.nbytes() for event in sorted(kept, key=lambda event: event.start_ns())])))
