"""Class by class: the table, and which class is taken for which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kiln.reports.run_page.subject import Subject

MOST_CLASSES = 20
"""Rows of the matrix; of more classes, those with the most mistakes are shown."""
MOST_MISTAKES = 24
"""Pictures of one cell off the diagonal."""
MOST_RIGHT = 6
"""Pictures of one cell on the diagonal."""


@dataclass(frozen=True)
class Cell:
    """Samples of one true class that the model gave one class.

    Attributes:
        name: id in the page.
        true: what they are.
        told: what the model says.
        count: of samples.
        share: of the true class.
        is_right: on the diagonal.
        indices: of those shown, the surest first.
    """

    name: str
    true: str
    told: str
    count: int
    share: float
    is_right: bool
    indices: tuple[int, ...]


class Confusion(NamedTuple):
    """What is shown of a confusion matrix.

    Attributes:
        classes: of its rows and columns.
        rows: of cells.
        num_left_out: classes that are not shown.
        num_mistakes_left_out: that lie in no cell shown.
    """

    classes: tuple[str, ...]
    rows: list[list[Cell]]
    num_left_out: int
    num_mistakes_left_out: int

    @property
    def opened(self) -> list[Cell]:
        """Cells with samples: mistakes first, the most frequent before others."""
        cells = [cell for row in self.rows for cell in row if cell.count]
        return sorted(cells, key=lambda cell: (cell.is_right, -cell.count))


def class_table(details: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row per class, as `result.json` has them, with what sorts and draws them."""
    return [
        {
            **row,
            "low": row.get("recall_low"),
            "high": row.get("recall_high"),
            "area": row.get("average_precision"),
        }
        for row in details.get("per_class", ())
    ]


def confusion_of(subject: Subject) -> Confusion:
    """The confusion matrix of samples with one label each."""
    true, told, num = subject.true.argmax(axis=1), subject.given.argmax(axis=1), len(subject.classes)
    counts = np.bincount(true * num + told, minlength=num * num).reshape(num, num)
    mistakes = counts - np.diag(np.diag(counts))
    chosen = np.arange(num)
    if num > MOST_CLASSES:
        weight = mistakes.sum(axis=0) + mistakes.sum(axis=1)
        chosen = np.sort(np.argsort(-weight, kind="stable")[:MOST_CLASSES])
    order = np.argsort(-subject.sure, kind="stable")
    rows = [[_cell(subject, counts, int(i), int(j), order[(true[order] == i) & (told[order] == j)]) for j in chosen]
            for i in chosen]  # fmt: skip
    return Confusion(
        tuple(subject.classes[int(k)] for k in chosen),
        rows,
        num - len(chosen),
        int(mistakes.sum() - mistakes[np.ix_(chosen, chosen)].sum()),
    )


def _cell(subject: Subject, counts: NDArray[np.int64], i: int, j: int, members: NDArray[np.int64]) -> Cell:
    count = int(counts[i, j])
    most = MOST_RIGHT if i == j else MOST_MISTAKES
    return Cell(
        f"cell-{i}-{j}",
        subject.classes[i],
        subject.classes[j],
        count,
        count / max(int(counts[i].sum()), 1),
        i == j,
        tuple(members[:most].tolist()),
    )


class LabelErrors(NamedTuple):
    """One label's mistakes, where samples have any number of labels.

    Attributes:
        label: its name.
        missed: the cell of samples that have it and were not given it.
        wrong: the cell of samples that were given it and do not have it.
    """

    label: str
    missed: Cell
    wrong: Cell


def label_errors(subject: Subject) -> list[LabelErrors]:
    """What takes the place of the matrix for labels: per label, what was missed and what was given wrongly.

    Labels with the most mistakes come first; at most `MOST_CLASSES`.
    """
    found = []
    for k, label in enumerate(subject.classes):
        probability, true, given = subject.probabilities[:, k], subject.true[:, k], subject.given[:, k]
        missed = _label_cell(f"missed-{k}", label, true & ~given, probability, num=int(true.sum()))
        wrong = _label_cell(f"wrong-{k}", label, given & ~true, -probability, num=int(given.sum()))
        found.append(LabelErrors(label, missed, wrong))
    return sorted(found, key=lambda one: -(one.missed.count + one.wrong.count))[:MOST_CLASSES]


def _label_cell(name: str, label: str, which: NDArray[np.bool_], rank: NDArray[np.float64], *, num: int) -> Cell:
    members = np.flatnonzero(which)
    members = members[np.argsort(rank[members], kind="stable")]
    count = len(members)
    return Cell(name, label, label, count, count / max(num, 1), False, tuple(members[:MOST_MISTAKES].tolist()))


def in_turns(cells: Sequence[Cell]) -> list[int]:
    """Samples of cells in the order in which their pictures are wanted: the first of each, then the second."""
    longest = max((len(cell.indices) for cell in cells), default=0)
    return [cell.indices[turn] for turn in range(longest) for cell in cells if turn < len(cell.indices)]
