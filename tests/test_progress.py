"""Progress: plain lines with what is left where there is no terminal, a bar where there is one."""

import io

import pytest
from rich.console import Console

from compressor.progress import Progress, format_seconds


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"), (7830, "2 h 10 min")]
)
def test_seconds_for_people(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def shown(terminal: bool) -> str:
    text = io.StringIO()
    with Progress(Console(file=text, force_terminal=terminal, width=120)).task("width", 3) as task:
        for step in range(3):
            task.note(f"loss {step}")
            task.advance()
    return text.getvalue()


def test_lines_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(terminal=False) == ""
    monkeypatch.setattr("compressor.progress.SECONDS_BETWEEN_LINES", 0.0)
    lines = shown(terminal=False).splitlines()
    assert lines[0] == "width: 1 of 3, about 0 s left  loss 0" and len(lines) == 3


def test_a_bar_in_a_terminal() -> None:
    assert "width" in shown(terminal=True) and "/3" in shown(terminal=True)
