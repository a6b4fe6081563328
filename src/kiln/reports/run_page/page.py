"""The report of a run: one HTML file that says what was reached, where it fails, and why, to be opened anywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from kiln.language import current, speaking, tr
from kiln.reports.run_page.calibration import calibration, coverage
from kiln.reports.run_page.classes import class_table, confusion_of, in_turns, label_errors
from kiln.reports.run_page.errors import Shown, confident_mistakes, confused_pairs, hardest, suspects
from kiln.reports.run_page.material import Material
from kiln.reports.run_page.pictures import BUDGET_BYTES, Pictures, Thumb, make_pictures, saliency_picture
from kiln.reports.run_page.process import curves, data_findings, decided, provenance, speed
from kiln.reports.run_page.slices import slices_of
from kiln.reports.run_page.subject import Subject, subject_of
from kiln.reports.run_page.verdict import headline
from kiln.reports.run_page.words import percent, points, split_name

TEMPLATE = "page.html.jinja"
MOST_SLICES = 12
MOST_BYTES = 5_000_000
"""A page stays below this, whatever it shows."""


def report_page(
    material: Material, *, language: str | None = None, split: str | None = None, budget_bytes: int = BUDGET_BYTES
) -> str:
    """Write the page: self-contained, in both themes, of use without scripts too.

    Args:
        material: of the run.
        language: `en` or `zh`; without it, the language of the moment.
        split: the held-out part to look into; test by default, validation where there is none.
        budget_bytes: of all pictures.
    """
    with speaking(language):
        chosen = material.split(split)
        kept = material.outputs
        subject = subject_of(kept, chosen) if kept is not None and chosen in kept.splits else None
        content = _of_samples(material, subject, budget_bytes) if subject is not None else {}
        return _environment().get_template(TEMPLATE).render(
            language={"zh": "zh-CN"}.get(current(), current()),
            title=tr("Report on the run {name}", name=material.name),
            name=material.name,
            split=split_name(chosen),
            subject=subject,
            head=headline(material, chosen, subject),
            data=data_findings(material),
            curves=curves(material),
            classes=class_table(material.result.get("details", {}).get(chosen, {})),
            speed=speed(material),
            decided=decided(material),
            provenance=provenance(material),
            no_pictures=material.no_pictures,
            **{**_NOTHING, **content},
        )  # fmt: skip


_NOTHING: dict[str, Any] = {
    "calibration": None, "coverage": None, "slices": None, "confusion": None, "labels": None, "cells": (),
    "gallery": None, "suspects": (), "num_suspects": 0, "thumbs": {}, "saliency": {}, "no_saliency": "",
    "pictures": Pictures({}, frozenset()),
}  # fmt: skip


def _of_samples(material: Material, subject: Subject, budget_bytes: int) -> dict[str, Any]:
    """What is told from the model's outputs, sample by sample."""
    mistakes = confident_mistakes(subject)
    pairs = confused_pairs(subject)
    hard = hardest(subject, but={shown.index for shown in mistakes})
    doubted, num_doubted = suspects(subject)
    matrix = confusion_of(subject) if subject.one_label else None
    labels = () if subject.one_label else label_errors(subject)
    cells = matrix.opened if matrix is not None else [cell for one in labels for cell in (one.missed, one.wrong)]
    gallery = [*mistakes, *(shown for pair in pairs for shown in pair.samples), *hard]
    explained, no_saliency = _explained(material, gallery)
    spent = sum(len(thumb.uri) for thumb in explained.values())
    wanted = [shown.key for shown in gallery]
    wanted += [one["sample"].key for one in doubted]
    wanted += [subject.keys[index] for index in in_turns([cell for cell in cells if not cell.is_right])]
    wanted += [subject.keys[index] for index in in_turns([cell for cell in cells if cell.is_right])]
    pictures = make_pictures(material.photographs, wanted, budget_bytes=budget_bytes - spent)
    found = slices_of(subject, material.properties)
    kept = material.outputs
    return {
        "calibration": calibration(kept, subject) if kept is not None else None,
        "coverage": coverage(subject),
        "slices": {
            "below": [one for one in found if one.is_below],
            "all": found[:MOST_SLICES],
            "num": len(found),
        },
        "confusion": matrix,
        "labels": labels,
        "cells": [cell for cell in cells if cell.count],
        "gallery": {"mistakes": mistakes, "pairs": pairs, "hardest": hard},
        "suspects": doubted,
        "num_suspects": num_doubted,
        "pictures": pictures,
        "saliency": explained,
        "no_saliency": no_saliency,
    }


def _explained(material: Material, shown: Sequence[Shown]) -> tuple[Mapping[str, Thumb], str]:
    """Pictures of where the model looked, by key, and why there are none."""
    if material.explain is None or not shown:
        return {}, material.no_saliency
    outputs = {one.key: one.output for one in shown}
    found = material.explain(list(outputs), list(outputs.values()))
    return {
        key: saliency_picture(f"s{number}", image, heat) for number, (key, (image, heat)) in enumerate(found.items())
    }, material.no_saliency


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=lambda name: name is None or ".html" in name,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(t=tr, percent=percent, points=points)
    return environment
