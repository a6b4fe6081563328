"""Charts as SVG to stand inside a page: drawn by matplotlib, coloured by the page, so that both themes read well.

Only numbers are written into a chart. Words (its name, the names of its lines) belong to the page, which can translate and
wrap them.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZE = (4.2, 2.5)  # inches of 72 units; a phone shows it almost at full size
INK, LINE = "#010203", "#040506"
COLOURS = ("#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04")
"""Stand-ins that no chart is shown in: the page's own colours take their place."""
_OF_PAGE = {INK: "var(--faint)", LINE: "var(--line)"} | {
    colour: f"var(--series-{number})" for number, colour in enumerate(COLOURS, start=1)
}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 10.5,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 10.5,
    "ytick.labelsize": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
}


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        x: places, rising.
        y: values there; None is a gap.
        colour: 1 to 4.
        dashed: drawn so.
        dots: a dot at each place as well.
        low: lower edge of a band around it, if there is one.
        high: upper edge.
    """

    x: Sequence[float]
    y: Sequence[float | None]
    colour: int = 1
    dashed: bool = False
    dots: bool = False
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()


def line_chart(
    lines: Sequence[Line],
    *,
    key: str,
    percent: bool = False,
    log: bool = False,
    limits: tuple[float, float] | None = None,
    diagonal: bool = False,
    mark: float | None = None,
) -> str:
    """Draw lines over common axes.

    Args:
        lines: at least one.
        key: a word that no other chart of the page has; it keeps names inside the SVG apart.
        percent: values are shares, and so are places where `diagonal`.
        log: values on a logarithmic axis.
        limits: of the values; fitted without it.
        diagonal: draw the line on which both axes are equal, from 0 to 1.
        mark: a place to mark by an upright line.
    Returns: an `<svg>` element without words, hidden from screen readers: the page tells what it shows.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    with mpl.rc_context({**_STYLE, "svg.hashsalt": key}):
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.subplots()
        for line in lines:
            _draw(axes, line)
        if log:
            axes.set_yscale("log")
        elif limits is not None:
            axes.set_ylim(*limits)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=not diagonal and not percent))
        if percent:
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
        if diagonal:
            axes.plot([0, 1], [0, 1], color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
            axes.set_xlim(0, 1)
        if diagonal or (percent and max(max(line.x) for line in lines) <= 1):
            axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
        if mark is not None:
            axes.axvline(mark, color=INK, linewidth=0.9, linestyle=(0, (2, 2)))
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return embedded(file.getvalue())


def _draw(axes: Axes, line: Line) -> None:
    colour = COLOURS[line.colour - 1]
    y: list[Any] = [float("nan") if value is None else value for value in line.y]
    axes.plot(
        line.x,
        y,
        color=colour,
        linewidth=1.8,
        linestyle=(0, (4, 2)) if line.dashed else "-",
        marker="o" if line.dots or len(y) == 1 else None,
        markersize=4,
    )
    if len(line.low):
        low, high = ([float("nan") if value is None else value for value in ends] for ends in (line.low, line.high))
        axes.fill_between(line.x, low, high, color=colour, alpha=0.18, linewidth=0)


def embedded(svg: str) -> str:
    """A stand-alone SVG made part of a page: no declarations, its ids only where something refers to them."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    used = set(re.findall(r'href="#([^"]+)"', svg)) | set(re.findall(r"url\(#([^)]+)\)", svg))
    svg = re.sub(r'\sid="([^"]+)"', lambda found: found[0] if found[1] in used else "", svg)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*|font-family: [^;\"]*", lambda f: f"font-size: {f[1]}" if f[1] else "", svg)
    for stand_in, colour in _OF_PAGE.items():
        svg = svg.replace(stand_in, colour)
    box = re.search(r'viewBox="[^"]*"', svg)
    head = f'<svg class="chart" {box[0] if box else ""} aria-hidden="true" focusable="false"'
    return re.sub(r"<svg[^>]*", head, svg, count=1).strip()
