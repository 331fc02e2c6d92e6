"""Line charts as SVG that takes the colours of the page it stands in, light or dark."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

SERIES = ("#2f7fc1", "#d9662b", "#3a9a5b", "#b0529b", "#a8872a", "#5f6fd0", "#c2474d", "#2b9aa0")
"""Colours of lines: readable on white and on near black."""

# Drawn in this colour, then written as the page's own.
_INK = "#010203"
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "gimseg",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "grid.color": _INK,
    "grid.alpha": 0.15,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 9,
}


@dataclass(frozen=True, eq=False)
class Line:
    """One line of a chart.

    Args:
        name: in the chart's key; "" for none.
        x: (points,).
        y: (points,); a gap where it is NaN.
        mark: (x, y) of a point to be marked.
        colour: one of the usual by default.
        dashed: a reference, not a result.
    """

    name: str
    x: ArrayLike
    y: ArrayLike
    mark: tuple[float, float] | None = None
    colour: str | None = None
    dashed: bool = False


@dataclass(frozen=True)
class LineChart:
    """Lines over one pair of axes.

    Args:
        title: above it.
        x_label: below it, with the unit.
        y_label: beside it, with the unit.
        lines: those to draw.
        x_range: of the axis; None: as the lines are.
        y_range: likewise.
    """

    title: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None


def draw_svg(panels: Sequence[LineChart], *, columns: int = 2) -> str:
    """Charts side by side.

    Returns:
        an ``<svg>`` element whose ink is ``currentColor``; the text is text, in the page's font.
    """
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    with mpl.rc_context(_STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(4.9 * columns, 3.3 * rows), layout="constrained")
        FigureCanvasSVG(figure)
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes in grid[len(panels) :]:
            axes.axis("off")
        for axes, panel in zip(grid, panels, strict=False):
            _draw(axes, panel)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _inline(stream.getvalue())


def _draw(axes: Axes, panel: LineChart) -> None:
    for number, line in enumerate(panel.lines):
        colour = line.colour or (_INK if line.dashed else SERIES[number % len(SERIES)])
        style = {"linestyle": "--", "linewidth": 0.8} if line.dashed else {"linewidth": 1.7}
        axes.plot(np.asarray(line.x), np.asarray(line.y), color=colour, label=line.name or "_", **style)
        if line.mark is not None:
            axes.plot(*line.mark, "o", color=colour, markersize=5)
    axes.set_title(panel.title)
    axes.set_xlabel(panel.x_label)
    axes.set_ylabel(panel.y_label)
    axes.grid()
    axes.set(xlim=panel.x_range, ylim=panel.y_range)
    if any(line.name for line in panel.lines):
        axes.legend()


def _inline(svg: str) -> str:
    """The element alone: no prologue, no fixed size, no names that would be there twice."""
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<g|<text) id="[^"]*"', r"\1", svg)
    svg = re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" role="img">', svg, count=1, flags=re.DOTALL)
    svg = svg.replace("xlink:href", "href")
    return re.sub(r"font: ([0-9.]+px) [^;\"]*", r"font-size: \1", svg)
