"""Progress of long work: a bar with the time left in a terminal, one plain line a minute elsewhere."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

SECONDS_BETWEEN_LINES = 60.0


class Task(Protocol):
    """One piece of work that is being shown."""

    def advance(self) -> None:
        """One unit is done."""

    def note(self, text: str) -> None:
        """Show a few words beside the count."""


class Progress:
    """Where long work is shown.

    Args:
        console: written to; whether it is a terminal decides the form.
    """

    def __init__(self, console: Console) -> None:
        self.console = console

    def say(self, text: str) -> None:
        """A line of its own."""
        self.console.print(text, markup=False, highlight=False)

    @contextmanager
    def task(self, title: str, total: int, done: int = 0) -> Iterator[Task]:
        """Show work of `total` units while the block runs, the first of which may have been done before."""
        if not self.console.is_terminal:
            yield _Lines(self.console, title, total, done)
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}"),
        )
        with RichProgress(*columns, console=self.console, transient=True) as bars:
            yield _Bar(bars, title, total, done)


class _Bar:
    def __init__(self, bars: RichProgress, title: str, total: int, done: int) -> None:
        self._bars = bars
        self._task = bars.add_task(title, total=total, completed=done, text="")

    def advance(self) -> None:
        self._bars.advance(self._task)

    def note(self, text: str) -> None:
        self._bars.update(self._task, text=text)


class _Lines:
    def __init__(self, console: Console, title: str, total: int, done: int) -> None:
        self._console, self._title, self._total = console, title, total
        self._done, self._before, self._text = done, done, ""
        self._start = self._last = time.monotonic()

    def advance(self) -> None:
        self._done += 1
        now = time.monotonic()
        if now - self._last >= SECONDS_BETWEEN_LINES:
            self._last = now
            left = (now - self._start) / (self._done - self._before) * (self._total - self._done)
            line = f"{self._title}: {self._done} of {self._total}, about {format_seconds(left)} left  {self._text}"
            self._console.print(line.rstrip(), markup=False, highlight=False)

    def note(self, text: str) -> None:
        self._text = text


def format_seconds(seconds: float) -> str:
    """`42 s`, `3 min 05 s`, `2 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
