"""Parts of the split that do worse than the rest: how samples are sorted into parts, and what is said of them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from kiln.language import tr
from kiln.measure.slices import Slice, compare_slices, quantile_bins
from kiln.reports.run_page.subject import Subject

MOST_GROUPS = 200
TALL, WIDE = 0.8, 1.25
"""Width over height below and above which an image is upright or lying."""
Properties = Mapping[str, NDArray[np.float64]]


def slices_of(subject: Subject, properties: Properties) -> list[Slice]:
    """Every part that is large enough, compared with the rest; the least likely to be chance first."""
    values: dict[str, list[str | None]] = {}
    if subject.one_label:
        true = subject.true.argmax(axis=1)
        values[tr("class")] = [subject.classes[int(k)] for k in true]
    else:
        for k, name in enumerate(subject.classes):
            values[tr("label {name}", name=name)] = [tr("yes") if yes else tr("no") for yes in subject.true[:, k]]
    for name, column in properties.items():
        values[kind_name(name)] = _aspects(column) if name == "aspect" else _quarters(name, column)
    if subject.groups is not None and len(set(subject.groups)) <= MOST_GROUPS:
        values[tr("group")] = [group or None for group in subject.groups]
    return compare_slices(subject.right, values)


def kind_name(name: str) -> str:
    """What a property is called."""
    known = {
        "size": tr("image size"),
        "aspect": tr("aspect ratio"),
        "brightness": tr("brightness"),
        "contrast": tr("contrast"),
    }
    return known.get(name, name)


def _aspects(column: NDArray[np.float64]) -> list[str | None]:
    names = (tr("upright"), tr("about square"), tr("lying"))
    return [names[int(np.digitize(value, (TALL, WIDE)))] if np.isfinite(value) else None for value in column]


def _quarters(name: str, column: NDArray[np.float64]) -> list[str | None]:
    bins, borders = quantile_bins(column)
    if not len(borders):
        return [None] * len(column)
    written = [f"{border:.0f}" for border in borders]
    unit = tr("px") if name == "size" else tr("of 255")
    names = (
        tr("up to {high} {unit}", high=written[0], unit=unit),
        tr("{low} to {high} {unit}", low=written[0], high=written[1], unit=unit),
        tr("{low} to {high} {unit}", low=written[1], high=written[2], unit=unit),
        tr("above {low} {unit}", low=written[2], unit=unit),
    )
    return [None if bin_ is None else names[bin_] for bin_ in bins]
