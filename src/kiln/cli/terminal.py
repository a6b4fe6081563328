"""What a person reads: short tables and lines; drawn on a terminal, plain in a file or pipe."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kiln.language import tr, word
from kiln.language.patterns import translated
from kiln.language.width import padded, width


def say(text: str = "") -> None:
    """A line on stdout."""
    sys.stdout.write(f"{text}\n")


def note(text: str) -> None:
    """A line on stderr: what the user should know, but no program needs."""
    sys.stderr.write(tr("note: {text}", text=translated(text)) + "\n")


def say_json(value: Mapping[str, Any] | Sequence[Any]) -> None:
    """One JSON object as one line: the last that is printed. JSON has no NaN: what is undefined is null."""
    plain = "utf" in (sys.stdout.encoding or "utf-8").lower()
    say(json.dumps(_finite(value), ensure_ascii=not plain, allow_nan=False, default=str))


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print rows under their column names: drawn on a terminal, aligned by spaces elsewhere. Numbers stand right.

    The names of columns are said in the language of the moment.
    """
    columns = [word(column) for column in columns]
    cells = [[_cell(value) for value in row] for row in rows]
    numeric = [all(_is_number(row[index]) for row in cells) for index in range(len(columns))]
    if sys.stdout.isatty():
        _draw(columns, cells, numeric)
        return
    widths = [max(width(row[index]) for row in [columns, *cells]) for index in range(len(columns))]
    for row in [columns, *cells]:
        aligned = [padded(text, most, right=right) for text, most, right in zip(row, widths, numeric, strict=True)]
        say("  ".join(aligned).rstrip())


def _draw(columns: Sequence[str], cells: Sequence[Sequence[str]], numeric: Sequence[bool]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column, right in zip(columns, numeric, strict=True):
        drawn.add_column(column, justify="right" if right else "left")
    for row in cells:
        drawn.add_row(*(Text(text) for text in row))
    Console().print(drawn)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return tr("yes") if value else tr("no")
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _is_number(text: str) -> bool:
    return text == "-" or text.replace(",", "").replace(".", "", 1).replace("e", "").lstrip("-").isdigit()
