"""Charts: well-formed, coloured by the page, with numbers only, the same each time."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from kiln.reports.charts import COLOURS, INK, LINE, Line, line_chart


def drawn(**how):
    lines = [
        Line([1, 2, 3], [0.2, None, 0.8], dots=True, low=[0.1, None, 0.7], high=[0.3, None, 0.9]),
        Line([1, 2, 3], [0.4, 0.5, 0.6], colour=4, dashed=True),
    ]
    return line_chart(lines, **{"key": "a", **how})


@pytest.mark.parametrize(
    "how", [{}, {"percent": True, "diagonal": True}, {"log": True}, {"limits": (0, 1), "mark": 2.0, "percent": True}]
)
def test_a_chart_is_part_of_a_page(how):
    svg = drawn(**how)
    root = ElementTree.fromstring(svg)
    assert root.tag == "svg"
    assert root.attrib["aria-hidden"] == "true"
    assert root.attrib["viewBox"]
    assert "http" not in svg
    assert "<style" not in svg
    assert "var(--series-1)" in svg
    assert "var(--series-4)" in svg
    assert not any(stand_in in svg for stand_in in (INK, LINE, *COLOURS))
    texts = [element.text or "" for element in root.iter("text")]
    assert len(texts) >= 4
    assert not re.search("[a-z]{2}", "".join(texts))


def test_ids_are_of_one_chart_alone_and_repeat():
    one, again, other = drawn(), drawn(), drawn(key="b")
    assert one == again
    ids = [set(re.findall(r'\sid="([^"]+)"', svg)) for svg in (one, other)]
    assert ids[0]
    assert not ids[0] & ids[1]
    used = set(re.findall(r"url\(#([^)]+)\)", one)) | set(re.findall(r'href="#([^"]+)"', one))
    assert used == ids[0]


def test_a_single_point_is_a_dot():
    assert "<use" in line_chart([Line([5], [0.5])], key="one")
