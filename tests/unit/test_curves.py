"""Curves as text and as a picture: what is drawn is what was given."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageColor

from kiln.errors import UsageError
from kiln.reports.curves import ANSI, COLORS, Curve, Panel, chart_text, write_chart

FALLING = Curve("falling", [1 - step / 99 for step in range(100)])
RISING = Curve("rising", [step / 99 for step in range(100)])
FLAT = Curve("flat", [0.5] * 100)


def heights(lines):
    """For each column of a chart, the row of its highest dot."""
    rows = [line.partition("│")[2] or line.partition("┤")[2] for line in lines[1:-1]]
    columns = max(map(len, rows))
    blank = chr(0x2800)
    return [
        next((row for row, text in enumerate(rows) if text.ljust(columns, blank)[column] != blank), None)
        for column in range(columns)
    ]


def test_text_falls_where_the_curve_falls():
    lines = chart_text(Panel("rate", [FALLING], [0]), width=60, height=12)
    assert lines[0] == "rate"
    assert max(map(len, lines)) <= 60
    found = heights(lines)
    assert (found[0], found[-1]) == (0, 11)
    assert found == sorted(found)
    rising = heights(chart_text(Panel("rate", [RISING], [0]), width=60, height=12))
    assert rising == sorted(rising, reverse=True)
    assert (rising[0], rising[-1]) == (11, 0)
    assert [line.split()[0] for line in lines if "┤" in line] == ["1", "0.5", "0"]
    assert lines[-1].endswith("step 100")


def test_a_flat_curve_and_a_single_step_have_a_chart():
    assert set(heights(chart_text(Panel("rate", [FLAT], [0]), width=40, height=9))) == {4}
    assert len(chart_text(Panel("rate", [Curve("one", [0.0])], [0]))) == 18


def test_colours_tell_curves_apart_in_a_terminal():
    panel = Panel("rate", [FALLING, RISING], [0, 1])
    text = "\n".join(chart_text(panel, colored=True))
    for color, name in ((ANSI[0], "falling"), (ANSI[1], "rising")):
        assert f"\x1b[{color}m──\x1b[0m {name}" in text
        assert text.count(f"\x1b[{color}m") > 20
    assert "\x1b" not in "\n".join(chart_text(panel))


def drawn_rows(picture, color):
    """Height above the bottom at which a colour stands, by column."""
    near = np.abs(picture.astype(int) - np.array(ImageColor.getrgb(color))).sum(2) < 60
    columns = np.flatnonzero(near[80:].any(0))
    return {int(column): float(np.flatnonzero(near[80:, column]).mean()) for column in columns}


def test_a_picture_has_the_curves_in_their_colours(tmp_path):
    panels = [Panel("rate", [FALLING, RISING], [0, 1]), Panel("momentum", [FLAT], [2])]
    write_chart(tmp_path / "c.png", panels, steps_per_epoch=10)
    with Image.open(tmp_path / "c.png") as image:
        assert (image.format, image.size) == ("PNG", (1000, 560))
        picture = np.asarray(image.convert("RGB"))
    down, up, flat = (drawn_rows(picture, COLORS[number]) for number in range(3))
    for rows, direction in ((down, 1), (up, -1)):
        columns = sorted(rows)
        assert len(columns) > 600
        assert all(direction * (rows[b] - rows[a]) >= -1 for a, b in zip(columns, columns[5:], strict=False))
        assert direction * (rows[columns[-1]] - rows[columns[0]]) > 200
    assert max(flat.values()) - min(flat.values()) < 1


def test_a_chart_is_a_png_in_a_folder_that_is_there(tmp_path):
    with pytest.raises(UsageError, match=r"a chart cannot be a \.gif"):
        write_chart(tmp_path / "c.gif", [Panel("rate", [FLAT], [0])])
    with pytest.raises(UsageError, match="no such folder"):
        write_chart(tmp_path / "gone" / "c.png", [Panel("rate", [FLAT], [0])])
