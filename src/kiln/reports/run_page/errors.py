"""Where the model fails, sample by sample: confident mistakes, confused pairs, hard samples, labels in doubt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kiln.reports.run_page.subject import Subject

MOST_SHOWN = 12
"""Samples of each kind."""
MOST_PAIRS = 4
MOST_OF_PAIR = 6
SUSPECT = 0.8
"""A label is in doubt where the model's own answer is ahead of it by so much probability."""
MOST_SUSPECTS = 24


@dataclass(frozen=True)
class Shown:
    """A sample on show.

    Attributes:
        index: in the split.
        key: of the sample.
        true: its label.
        told: what the model says.
        sure: how sure it is.
        output: the output that a picture of saliency is for.
    """

    index: int
    key: str
    true: str
    told: str
    sure: float
    output: int


class Pair(NamedTuple):
    """Two classes that are taken for each other.

    Attributes:
        a: one class.
        b: the other.
        a_as_b: samples of the one that were given the other.
        b_as_a: the other way round.
        samples: some of them, the surest first.
    """

    a: str
    b: str
    a_as_b: int
    b_as_a: int
    samples: list[Shown]


def show(subject: Subject, index: int) -> Shown:
    """What is said of a sample on show."""
    row = subject.probabilities[index]
    given = subject.given[index]
    output = int(np.where(given, row, -1.0).argmax()) if given.any() else int(row.argmax())
    return Shown(
        index, subject.keys[index], subject.true_label(index), subject.told(index), float(subject.sure[index]), output
    )


def confident_mistakes(subject: Subject) -> list[Shown]:
    """Wrong answers, the surest first."""
    wrong = np.flatnonzero(~subject.right)
    return [show(subject, int(k)) for k in wrong[np.argsort(-subject.sure[wrong], kind="stable")][:MOST_SHOWN]]


def hardest(subject: Subject, *, but: set[int]) -> list[Shown]:
    """Samples whose label costs the model most, right or wrong, except those shown already."""
    order = np.argsort(-subject.difficulty(), kind="stable")
    return [show(subject, int(k)) for k in order if int(k) not in but][:MOST_SHOWN]


def confused_pairs(subject: Subject) -> list[Pair]:
    """Classes that are taken for each other, the most often first."""
    if not subject.one_label or len(subject.classes) < 2:
        return []
    true, told = subject.true.argmax(axis=1), subject.given.argmax(axis=1)
    wrong = np.flatnonzero(~subject.right)
    both = np.sort(np.stack([true[wrong], told[wrong]], axis=1), axis=1)
    found, counts = np.unique(both, axis=0, return_counts=True)
    pairs = []
    for which in np.argsort(-counts, kind="stable")[:MOST_PAIRS]:
        a, b = (int(k) for k in found[which])
        members = wrong[(both == found[which]).all(axis=1)]
        members = members[np.argsort(-subject.sure[members], kind="stable")]
        forth = int((true[members] == a).sum())
        samples = [show(subject, int(k)) for k in members[:MOST_OF_PAIR]]
        pairs.append(Pair(subject.classes[a], subject.classes[b], forth, len(members) - forth, samples))
    return pairs


def suspects(subject: Subject) -> tuple[list[dict[str, Any]], int]:
    """Samples whose label the model contradicts confidently, the most confident first, and how many there are."""
    doubt = subject.doubt()
    order = [int(k) for k in np.argsort(-doubt, kind="stable") if doubt[k] >= SUSPECT]
    return [_suspect(subject, k, doubt) for k in order[:MOST_SUSPECTS]], len(order)


def _suspect(subject: Subject, index: int, doubt: NDArray[np.float64]) -> dict[str, Any]:
    return {"sample": show(subject, index), "doubt": float(doubt[index])}
