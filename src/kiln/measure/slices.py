"""Parts of the held-out samples in which a model is worse than in the rest, told apart from chance.

Many parts are looked at, so some look bad by accident: each is tested exactly, and the tests are corrected for their
number by Holm's method, which keeps the chance of a single false finding below 5 %.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kiln.metrics import wilson

Floats = NDArray[np.float64]
LEVEL = 0.05
LEAST_SAMPLES = 10
"""A part with fewer samples, or a rest with fewer, is not tested."""
NUM_BINS = 4


@dataclass(frozen=True)
class Slice:
    """A part of the samples against the rest of them.

    Attributes:
        kind: what the samples have in common, such as `brightness`.
        name: their value of it.
        n: samples in the part.
        num_right: of them.
        rest_n: samples outside, of those that the kind is known of.
        rest_num_right: of them.
        difference: accuracy of the part less that of the rest; negative where the part is worse.
        low: lower end of the 95 % interval of the difference.
        high: upper end.
        p: chance of so few right answers in the part if it were like the rest.
        adjusted_p: the same, corrected for the number of parts.
    """

    kind: str
    name: str
    n: int
    num_right: int
    rest_n: int
    rest_num_right: int
    difference: float
    low: float
    high: float
    p: float
    adjusted_p: float

    @property
    def accuracy(self) -> float:
        """Of the part."""
        return self.num_right / self.n

    @property
    def rest_accuracy(self) -> float:
        """Of all other samples."""
        return self.rest_num_right / self.rest_n

    @property
    def is_below(self) -> bool:
        """Whether the part is worse than the rest beyond chance, with all parts counted."""
        return self.adjusted_p < LEVEL


def compare_slices(right: ArrayLike, values: Mapping[str, Sequence[str | None]]) -> list[Slice]:
    """Compare every part of the samples with the rest.

    Args:
        right: (N,) whether each answer was right.
        values: for each kind, the value of every sample; samples with one value are one part. None is not known, and
            such samples are left out of that kind.
    Returns: the parts, the least likely to be chance first.
    """
    right = np.asarray(right, bool)
    found: list[tuple[str, str, int, int, int, int]] = []
    for kind, column in values.items():
        known = np.array([value is not None for value in column], bool)
        names = np.array([value or "" for value in column], object)
        for name in dict.fromkeys(names[known].tolist()):
            part = known & (names == name)
            rest = known & ~part
            if min(part.sum(), rest.sum()) >= LEAST_SAMPLES:
                n, hits, rest_n, rest_hits = part.sum(), right[part].sum(), rest.sum(), right[rest].sum()
                found.append((kind, str(name), int(n), int(hits), int(rest_n), int(rest_hits)))
    chances = [fisher_below(*counts) for _, _, *counts in found]
    slices = []
    for (kind, name, n, hits, rest_n, rest_hits), p, adjusted in zip(found, chances, holm(chances), strict=True):
        low, high = difference_interval(hits, n, rest_hits, rest_n)
        difference = hits / n - rest_hits / rest_n
        slices.append(Slice(kind, name, n, hits, rest_n, rest_hits, difference, low, high, float(p), float(adjusted)))
    return sorted(slices, key=lambda one: (one.adjusted_p, one.p, one.kind, one.name))


def fisher_below(n: int, hits: int, rest_n: int, rest_hits: int) -> float:
    """Fisher's exact test, one-sided: the chance of `hits` or fewer in the part, given all right answers there are.

    Args:
        n: samples of the part.
        hits: right answers among them.
        rest_n: all other samples.
        rest_hits: right answers among those.
    """
    total, total_hits = n + rest_n, hits + rest_hits
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, total + 1)))])  # log of k!

    def log_choose(a: int, b: NDArray[np.int64]) -> Floats:
        return logs[a] - logs[b] - logs[a - b]

    possible = np.arange(max(0, total_hits - rest_n), hits + 1)
    terms = log_choose(n, possible) + log_choose(rest_n, total_hits - possible)
    terms -= log_choose(total, np.array([total_hits]))
    return float(min(np.exp(terms).sum(), 1.0))


def holm(chances: Sequence[float]) -> Floats:
    """p values corrected for their number. Source: Holm 1979, Scandinavian Journal of Statistics 6, 65-70."""
    p = np.asarray(chances, np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1.0)
    return adjusted


def difference_interval(hits: int, n: int, rest_hits: int, rest_n: int) -> tuple[float, float]:
    """95 % interval of the difference of two independent shares.

    Source: Newcombe 1998, Statistics in Medicine 17, 873-890, method 10.
    """
    share, rest = hits / n, rest_hits / rest_n
    (low, rest_low), (high, rest_high) = wilson([hits, rest_hits], [n, rest_n])
    difference = share - rest
    below = float(np.hypot(share - low, rest_high - rest))
    above = float(np.hypot(high - share, rest - rest_low))
    return max(difference - below, -1.0), min(difference + above, 1.0)


def quantile_bins(values: ArrayLike) -> tuple[list[int | None], Floats]:
    """Cut samples into quarters by a number; equal numbers fall into one of them.

    Args:
        values: (N,); NaN is not known.
    Returns: the quarter of each sample (0 for the lowest; None where it is not known), and the three borders. All are
        None where the numbers are too much alike to be cut.
    """
    values = np.asarray(values, np.float64)
    known = np.isfinite(values)
    if known.sum() < NUM_BINS * LEAST_SAMPLES:
        return [None] * len(values), np.empty(0)
    borders = np.quantile(values[known], np.arange(1, NUM_BINS) / NUM_BINS)
    if borders[0] == borders[-1]:
        return [None] * len(values), np.empty(0)
    bins = np.searchsorted(borders, values, side="left")
    return [int(bin_) if fine else None for bin_, fine in zip(bins, known, strict=True)], borders
