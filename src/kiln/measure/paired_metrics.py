"""The difference of two models in every metric, resampled so that both are always asked the same samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kiln.measure.paired import compare_shares, holm, mcnemar, score_interval
from kiln.metrics import bootstrap, bootstrap_mean
from kiln.metrics.classification import macro_f1, shares

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

_CELLS = 2_000_000  # counts held at once


@dataclass(frozen=True)
class Answers:
    """What one model said of some samples.

    Attributes:
        given: (N, K) which labels it gave.
        truth: (N, K) which are true.
        scores: metrics that are means over samples: (N,) of each.
    """

    given: Bools
    truth: Bools
    scores: Mapping[str, Floats]

    @property
    def right(self) -> Bools:
        """(N,) whether all labels of a sample were told."""
        return (self.given == self.truth).all(axis=1)


@dataclass(frozen=True, slots=True)
class MetricDifference:
    """A metric of two models on the same samples.

    Attributes:
        first: its value for the first.
        second: its value for the second.
        low: lower end of the 95 % interval of second minus first.
        high: upper end.
        higher_is_better: False for a loss.
    """

    first: float
    second: float
    low: float
    high: float
    higher_is_better: bool

    @property
    def value(self) -> float:
        """Second minus first."""
        return self.second - self.first


@dataclass(frozen=True, slots=True)
class ClassChange:
    """How one class fared: its recall by both models.

    Attributes:
        index: of the class.
        support: samples that have it.
        first: recall by the first model.
        second: recall by the second.
        low: lower end of the 95 % interval of second minus first.
        high: upper end.
        p: of its test, corrected for the number of classes.
    """

    index: int
    support: int
    first: float
    second: float
    low: float
    high: float
    p: float

    @property
    def value(self) -> float:
        """Second minus first."""
        return self.second - self.first


def f1_macro(hits: NDArray, predicted: NDArray, actual: NDArray) -> Floats:
    """The mean F1 of what occurs, in truth or answers, from counts (..., K)."""
    return macro_f1(hits, predicted, actual)


def f1_micro(hits: NDArray, predicted: NDArray, actual: NDArray) -> Floats:
    """The F1 of all answers counted together, from counts (..., K)."""
    return shares(*(counts.sum(axis=-1) for counts in (hits, predicted, actual)))[2]


def balanced_accuracy(hits: NDArray, predicted: NDArray, actual: NDArray) -> Floats:
    """The mean recall of the classes that have samples, from counts (..., K)."""
    return shares(hits, predicted, actual)[1].sum(axis=-1) / np.maximum((actual > 0).sum(axis=-1), 1)


FROM_COUNTS: dict[str, Callable[[NDArray, NDArray, NDArray], Floats]] = {
    "balanced_accuracy": balanced_accuracy,
    "f1_macro": f1_macro,
    "f1_micro": f1_micro,
}
"""Metrics that are functions of hits, answers and truths per class."""


def compare_metrics(
    first: Answers,
    second: Answers,
    higher_is_better: Mapping[str, bool],
    *,
    groups: Counts | None = None,
    seed: int = 0,
) -> dict[str, MetricDifference]:
    """Each metric of both models, and the 95 % interval of its difference by 1,000 paired resamples.

    Args:
        first: of one model.
        second: of the other, for the same samples.
        higher_is_better: the metrics wanted, by name; those that are neither in `FROM_COUNTS` nor means over samples
            are passed over.
        groups: (N,) of each sample; whole groups are then drawn.
        seed: one seed, one interval.
    """
    found = {}
    for name, higher in higher_is_better.items():
        if name not in first.scores:
            continue
        gains = second.scores[name] - first.scores[name]
        low, high = _mean_interval(gains, groups, seed)
        found[name] = MetricDifference(
            float(first.scores[name].mean()), float(second.scores[name].mean()), low, high, higher
        )
    wanted = {name: FROM_COUNTS[name] for name in higher_is_better if name in FROM_COUNTS}
    if wanted:
        resampling = _Resampling(first, second, groups)
        for name, statistic in wanted.items():
            values = resampling.both(statistic, resampling.counts[None, :])
            low, high = resampling.interval(statistic, seed)
            found[name] = MetricDifference(float(values[0][0]), float(values[1][0]), low, high, higher_is_better[name])
    return {name: found[name] for name in higher_is_better if name in found}


def class_changes(first: Answers, second: Answers, groups: Counts | None = None) -> list[ClassChange]:
    """The recall of each class that has samples, by both models, with p values after Holm's correction."""
    support = first.truth.sum(axis=0)
    classes = np.flatnonzero(support)
    before, after = ((side.given & first.truth)[:, classes] for side in (first, second))
    recalls = [hits.sum(axis=0) / support[classes] for hits in (before, after)]
    lows, highs, chances = _class_tests(before, after, first.truth[:, classes], groups)
    return [
        ClassChange(int(index), int(support[index]), float(old), float(new), float(low), float(high), p)
        for index, old, new, low, high, p in zip(classes, *recalls, lows, highs, holm(chances), strict=True)
    ]


def _class_tests(
    first: Bools, second: Bools, truth: Bools, groups: Counts | None
) -> tuple[Sequence[float], Sequence[float], Sequence[float]]:
    """Ends of the interval and p value of each class, from hits (N, K) of both models."""
    if groups is None:
        losses, gains = (first & ~second).sum(axis=0), (second & ~first).sum(axis=0)
        lows, highs = score_interval(losses, gains, truth.sum(axis=0))
        return list(lows), list(highs), [mcnemar(*pair) for pair in zip(losses.tolist(), gains.tolist(), strict=True)]
    tests = []
    for column in range(truth.shape[1]):
        rows = truth[:, column]
        tests.append(compare_shares(first[rows, column], second[rows, column], groups[rows]))
    return [test.low for test in tests], [test.high for test in tests], [test.p for test in tests]


def _mean_interval(gains: Floats, groups: Counts | None, seed: int) -> tuple[float, float]:
    if groups is None:
        return bootstrap_mean(gains, seed=seed)
    sums, sizes = np.bincount(groups, weights=gains), np.bincount(groups)
    present = sizes > 0
    sums, sizes = sums[present], sizes[present].astype(np.float64)
    return bootstrap(np.ones(len(sizes)), lambda drawn: (drawn @ sums) / (drawn @ sizes), seed=seed)


class _Resampling:
    """Samples brought together in patterns: the same truth, the same two answers (and the same group).

    What is drawn are patterns or, with groups, groups; their counts per class are sums over patterns.
    """

    def __init__(self, first: Answers, second: Answers, groups: Counts | None) -> None:
        rows = [_digest(table) for table in (first.truth, first.given, second.given)]
        columns = [*rows, np.zeros(len(first.truth), np.uint64) if groups is None else groups.astype(np.uint64)]
        _, one_of_each, self.counts = np.unique(
            np.stack(columns, axis=1), axis=0, return_index=True, return_counts=True
        )
        truth = first.truth[one_of_each]
        self._actual = _Tally(truth)
        self._sides = [
            (_Tally(side.given[one_of_each] & truth), _Tally(side.given[one_of_each])) for side in (first, second)
        ]
        self._group_of = None if groups is None else np.unique(groups[one_of_each], return_inverse=True)[1]

    def both(self, statistic: Callable[[NDArray, NDArray, NDArray], Floats], counts: Counts) -> tuple[Floats, Floats]:
        """A statistic of both models, for counts of patterns (R, P). Returns: two (R,)."""
        actual = self._actual(counts)
        first, second = (statistic(hits(counts), given(counts), actual) for hits, given in self._sides)
        return first, second

    def interval(self, statistic: Callable[[NDArray, NDArray, NDArray], Floats], seed: int) -> tuple[float, float]:
        def difference(drawn: Counts) -> Floats:
            parts = np.array_split(drawn, max(1, len(drawn) * len(self.counts) // _CELLS))
            values = [self.both(statistic, self._patterns(part)) for part in parts if len(part)]
            return np.concatenate([second - first for first, second in values])

        cells = self.counts if self._group_of is None else np.ones(int(self._group_of.max()) + 1, np.int64)
        return bootstrap(cells, difference, seed=seed)

    def _patterns(self, drawn: Counts) -> Counts:
        """Counts of patterns (R, P) from what was drawn."""
        return drawn if self._group_of is None else drawn[:, self._group_of] * self.counts


class _Tally:
    """Sums counts of patterns (R, P) over those that have each of K labels."""

    def __init__(self, table: Bools) -> None:
        labels, self._rows = np.nonzero(table.T)  # in the order of labels, so that each is one run of rows
        self._first = np.flatnonzero(np.diff(labels, prepend=-1))
        self._present, self._num_labels = labels[self._first], table.shape[1]

    def __call__(self, counts: Counts) -> Floats:
        sums = np.zeros((len(counts), self._num_labels))
        if len(self._first):
            sums[:, self._present] = np.add.reduceat(counts[:, self._rows], self._first, axis=1)
        return sums


def _digest(table: Bools) -> NDArray[np.uint64]:
    """A number for each row (N,): equal rows have the same, others the same by a chance of 2**-64."""
    draws = np.random.Generator(np.random.Philox(key=0)).integers(0, 2**64, table.shape[1], np.uint64)
    return (table * draws).sum(axis=1, dtype=np.uint64)
