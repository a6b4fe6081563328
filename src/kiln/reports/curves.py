"""Curves over the steps of a training, in a terminal and as a picture. Needs Pillow alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from kiln.errors import UsageError

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8a6d00")
"""Told apart with every kind of colour vision. Source: Okabe and Ito 2008, reordered."""
ANSI = ("34", "31", "32", "35", "33", "36", "37", "90")

_SCALE = 3  # drawn this much larger and reduced, because Pillow draws lines without smoothing
_INK, _FAINT, _GRID = "#1a1a1a", "#6e6e6e", "#e4e4e4"
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # of a braille cell, by row and column


@dataclass(frozen=True)
class Curve:
    """One line of a chart.

    Attributes:
        name: in the legend.
        values: one for each step.
    """

    name: str
    values: Sequence[float]


@dataclass(frozen=True)
class Panel:
    """One chart: a title, its curves, and which of the colours each has."""

    title: str
    curves: Sequence[Curve]
    colors: Sequence[int]


def chart_text(panel: Panel, *, width: int = 78, height: int = 16, colored: bool = False) -> list[str]:
    """Lines of text with the curves in braille dots, 2 x 4 to a character.

    Args:
        panel: what to draw.
        width: characters of a line, labels included.
        height: lines of the chart itself.
        colored: whether the terminal understands colours, which tell the curves apart.
    """
    ticks, low, high = _axis(panel.curves, 3)
    labels = {round((high - tick) / (high - low) * (height - 1)): _number(tick) for tick in ticks}
    margin = max(map(len, labels.values()))
    columns = max(width - margin - 2, 10)
    dots = [[0] * columns for _ in range(height)]
    owners = [[0] * columns for _ in range(height)]
    for curve, color in zip(panel.curves, panel.colors, strict=True):
        before: int | None = None
        for x in range(2 * columns):
            value = curve.values[round(x / (2 * columns - 1) * (len(curve.values) - 1))]
            y = round((high - value) / (high - low) * (4 * height - 1))
            for between in range(min(y, y if before is None else before), max(y, y if before is None else before) + 1):
                dots[between // 4][x // 2] |= _DOTS[between % 4][x % 2]
                owners[between // 4][x // 2] = color
            before = y
    names = [
        f"\x1b[{ANSI[color % len(ANSI)]}m──\x1b[0m {curve.name}"
        for curve, color in zip(panel.curves, panel.colors, strict=True)
    ]
    lines = [panel.title, *(names if colored and len(names) > 1 else ())]
    for row in range(height):
        cells = [
            f"\x1b[{ANSI[owner % len(ANSI)]}m{chr(0x2800 + dot)}\x1b[0m" if colored and dot else chr(0x2800 + dot)
            for dot, owner in zip(dots[row], owners[row], strict=True)
        ]
        line = f"{labels.get(row, ''):>{margin}} {'┤' if row in labels else '│'}{''.join(cells)}"
        lines.append(line.rstrip(chr(0x2800)))
    last = f"step {len(panel.curves[0].values):,}"
    lines.append(f"{'':>{margin}} └{'1':<{columns - len(last)}}{last}")
    return lines


def write_chart(
    path: str | Path,
    panels: Sequence[Panel],
    *,
    steps_per_epoch: int | None = None,
    size: tuple[int, int] = (1000, 560),
) -> None:
    """Write panels, one below the other, as a PNG; the first takes most of the height.

    Args:
        path: ends in .png.
        panels: at least one; all over the same steps.
        steps_per_epoch: marks epochs below the steps.
        size: of the picture in pixels.
    Raises: UsageError: another suffix, or no such folder.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise UsageError("E101", f"a chart cannot be a {path.suffix or 'file without suffix'}", choices=(".png",))
    if not path.parent.is_dir():
        raise UsageError("E110", f"no such folder: {path.parent}")
    width, height = size
    sheet = Image.new("RGB", (width * _SCALE, height * _SCALE), "#ffffff")
    drawing = _Drawing(ImageDraw.Draw(sheet), width, steps_per_epoch)
    top, shares = 14, [3.0] + [1.2] * (len(panels) - 1)
    for number, panel in enumerate(panels):
        room = (height - 20) * shares[number] / sum(shares)
        drawing.panel(panel, top, top + room, is_first=number == 0, is_last=number == len(panels) - 1)
        top += room
    sheet.resize(size, Image.Resampling.LANCZOS).save(path, "PNG", optimize=True)


class _Drawing:
    """Draws panels in pixels of the finished picture."""

    left, right = 74, 22

    def __init__(self, draw: ImageDraw.ImageDraw, width: int, steps_per_epoch: int | None) -> None:
        self.draw, self.width, self.steps_per_epoch = draw, width, steps_per_epoch
        self.fonts = {px: ImageFont.load_default(px * _SCALE) for px in (13, 15)}

    def panel(self, panel: Panel, top: float, bottom: float, *, is_first: bool, is_last: bool) -> None:
        self.text(self.left, top, panel.title, px=15, anchor="la")
        top += 30
        if is_first:
            top += self.legend(panel, top)
        bottom -= 58
        ticks, low, high = _axis(panel.curves, 5 if bottom - top > 150 else 3)
        total = len(panel.curves[0].values)
        x0, x1 = self.left, self.width - self.right

        def place(step: float, value: float) -> tuple[float, float]:
            return x0 + step / total * (x1 - x0), bottom - (value - low) / (high - low) * (bottom - top)

        for tick in ticks:
            y = place(0, tick)[1]
            self.line([(x0, y), (x1, y)], _GRID, 1)
            self.text(x0 - 8, y, _number(tick), anchor="rm", fill=_FAINT)
        for tick in _ticks(0, total, 8):
            x = place(tick, low)[0]
            self.line([(x, bottom), (x, bottom + 5)], _FAINT, 1)
            self.text(x, bottom + 8, f"{tick:,.0f}", anchor="ma", fill=_FAINT)
        if is_last:
            self.text(x1, bottom + 28, self.unit(total), anchor="ra", fill=_FAINT)
        self.line([(x0, bottom), (x1, bottom)], _FAINT, 1)
        for curve, color in zip(panel.curves, panel.colors, strict=True):
            points = [place(step, value) for step, value in enumerate(curve.values)]
            self.line(points, COLORS[color % len(COLORS)], 2.2)

    def unit(self, total: int) -> str:
        if self.steps_per_epoch is None:
            return "step"
        return f"step  ({total / self.steps_per_epoch:g} epochs of {self.steps_per_epoch:,} steps)"

    def legend(self, panel: Panel, top: float) -> float:
        """Names with their colours, in as many lines as they need; returns the height taken."""
        x, y = float(self.left), top
        for curve, color in zip(panel.curves, panel.colors, strict=True):
            wide = self.fonts[13].getlength(curve.name) / _SCALE + 56
            if x > self.left and x + wide > self.width - self.right:
                x, y = float(self.left), y + 21
            self.line([(x, y + 8), (x + 24, y + 8)], COLORS[color % len(COLORS)], 3)
            self.text(x + 32, y + 8, curve.name, anchor="lm")
            x += wide
        return y + 32 - top

    def line(self, points: Sequence[tuple[float, float]], color: str, width: float) -> None:
        scaled = [(x * _SCALE, y * _SCALE) for x, y in points]
        if len(scaled) == 1:
            scaled *= 2
        self.draw.line(scaled, fill=color, width=round(width * _SCALE), joint="curve")

    def text(self, x: float, y: float, text: str, *, px: int = 13, anchor: str = "la", fill: str = _INK) -> None:
        self.draw.text((x * _SCALE, y * _SCALE), text, fill=fill, font=self.fonts[px], anchor=anchor)


def _axis(curves: Sequence[Curve], num: int) -> tuple[list[float], float, float]:
    """Ticks, and the ends of the axis: from zero where the values come near it, and never empty."""
    low = min(min(curve.values) for curve in curves)
    high = max(max(curve.values) for curve in curves)
    if low < 0.5 * high:
        low = min(low, 0.0)
    if high - low < 1e-12 * max(abs(high), 1e-300):
        low, high = (low - 0.5 * abs(low), high + 0.5 * abs(high)) if high else (0.0, 1.0)
    ticks = _ticks(low, high, num)
    return ticks, min(low, ticks[0]), max(high, ticks[-1])


def _ticks(low: float, high: float, num: int) -> list[float]:
    """About `num` round numbers from below `low` to `high`."""
    rough = (high - low) / max(num - 1, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    width = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / width + 1e-9), math.floor(high / width + 1e-9)
    return [number * width for number in range(first, last + 1)]


def _number(value: float) -> str:
    return f"{value:.3g}" if value else "0"
