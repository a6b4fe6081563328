"""Folds for cross-validation: every class dealt out evenly, groups whole, a pure function of keys, labels, groups and seed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kiln.data.split import Split, Units, parted_groups, split_source
from kiln.errors import DataError, UsageError

if TYPE_CHECKING:
    from kiln.data.source import Source

Indices = NDArray[np.int64]


def fold_of(
    source: Source, class_of: Sequence[str], *, num_folds: int, seed: int = 0, among: Indices | None = None
) -> Indices:
    """The fold of each sample.

    Within each class, samples are dealt out in the order of their hashes, so that the folds differ by one at most; groups,
    the largest first, go as a whole to the fold that has least of their classes. A class with at least two members (or
    groups) lies in at least two folds wherever some fold allows it, so that each can be held out. The order in which the
    samples come does not matter; a sample that is added may move others.

    Source: the greedy choice for groups is that of scikit-learn's StratifiedGroupKFold; differs: by need and not by the
    deviation over folds, single samples are dealt out last and even out what groups left, and nothing is drawn.

    Args:
        source: the samples.
        class_of: one text per sample, as from a task's `strata`.
        num_folds: at least 2.
        seed: another seed is another cut.
        among: indices of the samples to deal out; without it, all but those of a given test split.
    Returns: (N,), 0 to num_folds - 1, or -1 for those that are in no fold.
    Raises: UsageError: fewer than two folds.
    """
    if num_folds < 2:
        raise UsageError("E102", f"num_folds = {num_folds}", expected="2 or more")
    if among is None:
        among = np.array(
            [i for i in range(len(source)) if source.splits is None or source.splits[i] != "test"], np.int64
        )
    units = Units(source, class_of, among, seed)
    folds = np.full(len(source), -1, np.int64)
    folds[among] = _Dealer(units, [class_of[int(index)] for index in among], num_folds).deal()[units.unit_of]
    return folds


def fold_split(
    source: Source, class_of: Sequence[str], *, fold: int, num_folds: int, test_fraction: float = 0.0, seed: int = 0
) -> Split:
    """The split of one fold: it validates, the others train.

    Training and validation samples of the data are dealt out together; a test split is in no fold.

    Args:
        source: the samples.
        class_of: one text per sample.
        fold: the one to hold out, counted from 1.
        num_folds: at least 2.
        test_fraction: share to set apart for the test first, the same for all folds; where the data has no test split.
        seed: another seed is another cut.
    Raises: UsageError: as `fold_of` and `split_source`. DataError: the fold is empty.
    """
    test = split_source(source, class_of, val_fraction=0.0, test_fraction=test_fraction, seed=seed).test
    among = np.setdiff1d(np.arange(len(source)), test)
    folds = fold_of(source, class_of, num_folds=num_folds, seed=seed, among=among)
    held_out = np.flatnonzero(folds == fold - 1)
    if len(held_out) == 0:
        raise DataError(
            "E204",
            f"fold {fold} of {num_folds} has no samples",
            where=source.where,
            expected="at least one group (or sample without a group) for each fold",
            hint="fewer --folds",
        )
    train = np.flatnonzero((folds >= 0) & (folds != fold - 1))
    parts = {"train": train, "val": held_out, "test": test}
    place = np.full(len(source), "pool", "U5")
    place[test] = "test"
    return Split(
        train,
        held_out,
        test,
        reached={name: len(part) / max(len(source), 1) for name, part in parts.items()},
        notes=tuple(parted_groups(source, place)),
    )


class _Dealer:
    """Deals units out to folds.

    Args:
        units: what moves as one.
        labels: the class of each sample that the units hold.
        num_folds: to deal to.
    """

    def __init__(self, units: Units, labels: Sequence[str], num_folds: int) -> None:
        self._units, self._num_folds = units, num_folds
        self._members: list[Counter[str]] = [Counter() for _ in units.classes]
        for unit, name in zip(units.unit_of.tolist(), labels, strict=True):
            self._members[unit][name] += 1
        self._totals = Counter(labels)
        self._left = Counter({name: len(found) for name, found in units.of_class.items()})
        self._counts = {name: [0] * num_folds for name in self._totals}  # samples of a class by fold
        self._sizes = [0] * num_folds
        self._where = np.zeros(len(self._members), np.int64)

    def deal(self) -> Indices:
        """(U,) the fold of each unit."""
        sizes = [members.total() for members in self._members]
        groups = [unit for unit, size in enumerate(sizes) if size > 1]
        for unit in sorted(groups, key=lambda unit: (-sizes[unit], self._units.hashes[unit])):
            self._put(unit)
        for name in sorted(self._units.of_class):
            for unit in self._units.of_class[name]:
                if sizes[unit] == 1:
                    self._put(unit)
        return self._where

    def _put(self, unit: int) -> None:
        members = self._members[unit]
        for name in members:
            self._left[name] -= 1
        if len(members) == 1:  # the common case, quickly
            there = self._counts[next(iter(members))]
            fold = min(range(self._num_folds), key=lambda fold: (there[fold], self._sizes[fold]))
        else:
            fold = min(range(self._num_folds), key=lambda fold: self._cost(members, fold))
        for name, number in members.items():
            self._counts[name][fold] += number
        self._sizes[fold] += members.total()
        self._where[unit] = fold

    def _cost(self, members: Counter[str], fold: int) -> tuple[int, float, int]:
        """How little a unit suits a fold: classes that would lie in it alone, what it has of them, its size."""
        alone = sum(self._ends_alone(name, fold) for name in members)
        there = sum(self._counts[name][fold] * number / self._totals[name] for name, number in members.items())
        return alone, there, self._sizes[fold]

    def _ends_alone(self, name: str, fold: int) -> bool:
        """Whether the last unit of a class would join all the others of it in one fold."""
        counts = self._counts[name]
        return not self._left[name] and counts[fold] > 0 and counts[fold] == sum(counts)
