"""SIGTERM and Ctrl-C: a training loop finishes its step and saves; everything else stops at once."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_WORDS = "stopped; the same command goes on from what is saved"


class Stopped(KeyboardInterrupt):
    """The run was asked to stop, and did.

    No `Exception`: nothing that handles errors on the way may take it for one.

    Attributes:
        code: exit status, 128 and the number of the signal.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.code = 128 + number


class Interruption:
    """Whether somebody asked this process to stop.

    Attributes:
        requested: number of the signal that came while it was deferred; None if none did.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.requested: int | None = None
        self._deferred = False

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handle the signals within the block; for the main thread alone."""
        before = {number: signal.signal(number, self._handle) for number in self.SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Within the block the first signal only sets `requested`, for a loop that looks at it; a second one stops.

        Raises:
            Stopped: behind the block, if a signal came too late for the loop to see it.
        """
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        if self.requested is not None:
            raise Stopped(_WORDS, self.requested)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self._deferred and self.requested is None:
            self.requested = number
            return
        raise Stopped(_WORDS, number)
