"""Metrics that are functions of counts: per class (or label) what was told rightly, what was predicted, what there was.

Counts add up over batches and processes, so every metric here is exact however the samples were cut. Each function takes
counts of any shape (..., K), such as those of a thousand resamples, and gives values of shape (...). A share without a
denominator is 0, as scikit-learn's `zero_division=0`; means over classes take those that occur, in truth or prediction.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kiln.metrics.intervals import resample, wilson

Floats = NDArray[np.float64]
AVERAGES = ("macro", "micro", "weighted")


class Counts(NamedTuple):
    """Counts of K classes, each (..., K); `a + b` of two processes is `Counts(*map(np.add, a, b))`.

    Attributes:
        hits: samples of the class that were predicted to be of it.
        predicted: samples that were predicted to be of it.
        actual: samples of it.
    """

    hits: NDArray
    predicted: NDArray
    actual: NDArray


Statistic = Callable[[Counts], Floats]


def of_confusion(confusion: NDArray[np.int64]) -> Counts:
    """The counts that a confusion matrix (K, K) holds."""
    return Counts(np.diag(confusion), confusion.sum(axis=0), confusion.sum(axis=1))


def accuracy(counts: Counts) -> Floats:
    """The share of samples of one class each that were told."""
    return share(counts.hits.sum(axis=-1), counts.actual.sum(axis=-1))


def balanced_accuracy(counts: Counts) -> Floats:
    """The mean recall of the classes that have samples."""
    return share(share(counts.hits, counts.actual).sum(axis=-1), (counts.actual > 0).sum(axis=-1))


def precision(counts: Counts, *, average: str = "macro") -> Floats:
    """Of what was predicted, the share that is so."""
    return _averaged(lambda hits, predicted, _: share(hits, predicted), counts, average)


def recall(counts: Counts, *, average: str = "macro") -> Floats:
    """Of what there is, the share that was predicted."""
    return _averaged(lambda hits, _, actual: share(hits, actual), counts, average)


def f_beta(counts: Counts, *, beta: float = 1.0, average: str = "macro") -> Floats:
    """The harmonic mean of precision and recall, recall counting `beta` squared times.

    Source: van Rijsbergen 1979, Information Retrieval, chapter 7.
    """

    def per_class(hits: NDArray, predicted: NDArray, actual: NDArray) -> Floats:
        return share((1 + beta**2) * hits, predicted + beta**2 * actual)

    return _averaged(per_class, counts, average)


def matthews(counts: Counts) -> Floats:
    """Matthews' correlation of truth and prediction, -1 to 1; 0 where either is always the same class.

    Source: Gorodkin 2004, Computational Biology and Chemistry 28, eq. 8.
    """
    hits, predicted, actual = (np.asarray(part, np.float64) for part in counts)
    total = actual.sum(axis=-1)
    together = hits.sum(axis=-1) * total - (predicted * actual).sum(axis=-1)
    spread = np.square(total) - np.square(predicted).sum(axis=-1), np.square(total) - np.square(actual).sum(axis=-1)
    return share(together, np.sqrt(spread[0] * spread[1]))


def kappa(counts: Counts) -> Floats:
    """Cohen's kappa: agreement beyond chance; NaN where chance agrees always (one class in truth and prediction).

    Source: Cohen 1960, Educational and Psychological Measurement 20.
    """
    hits, predicted, actual = (np.asarray(part, np.float64) for part in counts)
    total = actual.sum(axis=-1)
    by_chance = (predicted * actual).sum(axis=-1)
    left = np.square(total) - by_chance
    return share(hits.sum(axis=-1) * total - by_chance, left, otherwise=np.nan)


def share(part: ArrayLike, whole: ArrayLike, *, otherwise: float = 0.0) -> Floats:
    """`part / whole`, and `otherwise` where there is no whole."""
    part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    nothing = np.full(np.broadcast_shapes(part.shape, whole.shape), otherwise)
    return np.divide(part, whole, out=nothing, where=whole > 0)


def wilson_of(part: int, whole: int) -> tuple[float, float]:
    """Wilson's interval of one share."""
    low, high = wilson(part, whole)
    return float(low), float(high)


def cells(confusion: NDArray[np.int64]) -> tuple[Counts, NDArray[np.int64]]:
    """The cells of a confusion matrix that hold samples: what one sample of each adds to the counts (C, K); samples (C,)."""
    rows, columns = np.nonzero(confusion)
    classes = np.arange(len(confusion))
    predicted, actual = (classes == columns[:, None]).astype(np.int64), (classes == rows[:, None]).astype(np.int64)
    return Counts(predicted * actual, predicted, actual), confusion[rows, columns]


def without_one(counts: Counts, units: Counts) -> Counts:
    """The counts (U, K) without one unit each: what the jackknife needs."""
    return Counts(*(whole - one for whole, one in zip(counts, units, strict=True)))


def resample_counts(units: Counts, times: NDArray[np.int64], statistics: list[Statistic], *, seed: int = 0) -> Floats:
    """Values of statistics in bootstrap resamples of whole units: cells, patterns of labels, or groups of samples.

    Args:
        units: (U, K) what one of each unit adds to the counts.
        times: (U,) how many there are of each.
        statistics: functions of the counts.
        seed: one seed, one set of resamples.
    Returns: (R, number of statistics).
    """
    num_classes = units.hits.shape[1]
    # Integers in float32 add up exactly below 2**24, and are multiplied twice as fast.
    exact = np.float32 if int(times @ units.actual.sum(axis=1)) < 2**22 else np.float64
    per_unit = np.hstack([units.hits, units.predicted, units.actual]).astype(exact)

    def values(drawn: NDArray[np.int64]) -> Floats:
        sums = (drawn.astype(exact) @ per_unit).astype(np.float64)
        counts = Counts(*(sums[:, place : place + num_classes] for place in range(0, 3 * num_classes, num_classes)))
        return np.stack([statistic(counts) for statistic in statistics], axis=1)

    return resample(times, values, seed=seed)


def _averaged(per_class: Callable[[NDArray, NDArray, NDArray], Floats], counts: Counts, average: str) -> Floats:
    if average == "micro":
        return per_class(*(part.sum(axis=-1) for part in counts))
    values = per_class(*counts)
    if average == "weighted":
        return share((values * counts.actual).sum(axis=-1), counts.actual.sum(axis=-1))
    return share(values.sum(axis=-1), ((counts.predicted + counts.actual) > 0).sum(axis=-1))
