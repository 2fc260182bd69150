"""The search in one picture: what was tried, the grid, and what is better."""

from collections.abc import Iterable
from pathlib import Path

from matplotlib.figure import Figure

from compressor.search.space import Candidate


def draw(
    path: Path, grid: Iterable[Candidate], tried: Iterable[Candidate], chosen: Iterable[Candidate], metric: str
) -> None:
    """Metric against milliseconds, as an SVG file."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    layers = (("tried", tried, ".", "#9aa5b1"), ("grid", grid, "s", "#1f6feb"), ("better", chosen, "*", "#d1480f"))
    for order, (label, candidates, marker, colour) in enumerate(layers):
        points = sorted((one.milliseconds, 100 * one.metric) for one in candidates)
        style = "-" if label == "better" else ""
        if points:
            axes.plot(*zip(*points, strict=True), marker, color=colour, label=label, linestyle=style, zorder=order)
    axes.set_xlabel("milliseconds, by the latency model")
    axes.set_ylabel(f"{metric} on held-out rows, percent")
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    figure.savefig(path, metadata={"Date": None})
