"""The page of a check: one HTML file with the pictures in it, to be opened anywhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from kiln.data.checks.findings import KEEP, KINDS, Finding, Findings, Place
from kiln.data.source import Source
from kiln.pixels import MAX_PIXELS
from kiln.reports.album import Album

TEMPLATE = "check_page.html.jinja"
MOST_CASES = 30
"""Cases shown of one kind; all are in check.csv."""
MOST_PICTURES = 6
"""Pictures shown of one case."""
MOST_CLASSES = 60


class Picture(NamedTuple):
    """One sample of a case.

    Attributes:
        key: of the sample.
        place: its split and label.
        decision: what is suggested; empty where that is to keep it.
        image: a data URI; empty where the file cannot be decoded.
    """

    key: str
    place: Place
    decision: str
    image: str


class Case(NamedTuple):
    """One finding, with the first of its pictures."""

    detail: str
    pictures: list[Picture]
    more: int


class Section(NamedTuple):
    """All findings of one code word, with the first of its cases."""

    code: str
    severity: str
    title: str
    advice: str
    num_cases: int
    cases: list[Case]
    with_pictures: bool


def check_page(
    findings: Findings,
    source: Source | None,
    *,
    max_pixels: int = MAX_PIXELS,
    title: str = "Check",
    table: str = "check.csv",
    most_cases: int = MOST_CASES,
) -> str:
    """Write the page: self-contained, without scripts, light or dark as the reader's system is.

    Args:
        findings: of the check.
        source: where the pictures come from; without one there are none.
        max_pixels: larger images are not shown.
        title: what was done.
        table: name of the file that has all the rows.
        most_cases: shown of one kind.
    """
    album = Album(source, max_pixels)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(TEMPLATE).render(
        findings=findings,
        splits=[(name or "all", count) for name, count in findings.sizes.items()],
        title=title,
        table=table,
        sections=[_section(code, findings, album, most_cases) for code in findings.counts],
        classes=_classes(findings),
        most_classes=MOST_CLASSES,
    )


def _section(code: str, findings: Findings, album: Album, most_cases: int) -> Section:
    kind, found = KINDS[code], findings.of(code)
    cases = [_case(finding, findings, album) for finding in found[:most_cases]]
    pictures = any(case.pictures for case in cases)
    return Section(code, kind.severity, kind.title, kind.advice, len(found), cases, pictures)


def _case(finding: Finding, findings: Findings, album: Album) -> Case:
    decisions: Sequence[str] = finding.decisions or (KEEP,) * len(finding.keys)
    samples = [
        (findings.places.get(key, Place("", "")), key, decision)
        for key, decision in zip(finding.keys, decisions, strict=True)
    ]
    seen: Counter[str] = Counter()
    turns = []  # the first of each split come first, then the second of each
    for place, _, _ in samples:
        turns.append(seen[place.split])
        seen[place.split] += 1
    order = sorted(range(len(samples)), key=turns.__getitem__)[:MOST_PICTURES]
    shown = [
        Picture(key, place, "" if decision == KEEP else decision, album.image(key))
        for place, key, decision in (samples[index] for index in order)
    ]
    return Case(finding.detail, shown, len(finding.keys) - len(shown))


def _classes(findings: Findings) -> list[dict[str, Any]]:
    """A row per label: its number of samples in each split, and the share of the largest."""
    counts = Counter(findings.places.values())
    labels = sorted({place.label for place in counts})
    totals = {label: sum(counts[Place(split, label)] for split in findings.sizes) for label in labels}
    most = max(totals.values(), default=0)
    return [
        {
            "label": label or "(none)",
            "counts": [counts[Place(split, label)] for split in findings.sizes],
            "share": totals[label] / max(most, 1),
        }
        for label in labels
    ]
