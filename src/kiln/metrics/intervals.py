"""A number and how far it can be trusted: 95 % intervals, closed where a closed form is good, resampled elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kiln import random
from kiln.random import Purpose

LEVEL = 0.95
NUM_RESAMPLES = 1000
_Z = 1.959963984540054  # the 97.5 % point of the normal distribution
_CHUNK_CELLS = 2_000_000  # counts held at once while resampling: 16 MiB of int64

Statistic = Callable[[NDArray[np.int64]], NDArray[np.float64]]


@dataclass(frozen=True, slots=True)
class Metric:
    """A measured number.

    Attributes:
        value: what was measured.
        low: lower end of the 95 % interval; None where none was computed.
        high: upper end.
        n: samples that it rests on.
        higher_is_better: False for a loss.
    """

    value: float
    low: float | None
    high: float | None
    n: int
    higher_is_better: bool = True

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.value:.4f} (n={self.n})"
        return f"{self.value:.4f} (95 % {self.low:.4f} to {self.high:.4f}, n={self.n})"

    def better_than(self, other: Metric) -> bool:
        """Whether this value beats the other's; says nothing about chance. NaN beats nothing."""
        return self.value > other.value if self.higher_is_better else self.value < other.value


def wilson(
    successes: ArrayLike, n: ArrayLike, *, least_trials: float = 1.0
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """95 % interval of a share, good down to no success and to one sample; (0, 1) where n is 0.

    Source: Wilson 1927, JASA 22, 209-212.

    Args:
        successes: any shape, 0 <= successes <= n.
        n: the same shape, or one that broadcasts.
        least_trials: a smaller `n` counts as this many.
    Returns: low and high, of the broadcast shape.
    """
    successes, n = np.asarray(successes, np.float64), np.asarray(n, np.float64)
    trials = np.maximum(n, least_trials)
    share = successes / trials
    centre = share + _Z**2 / (2 * trials)
    half = _Z * np.sqrt(share * (1 - share) / trials + _Z**2 / (4 * trials**2))
    scale = 1 + _Z**2 / trials
    # A share of 0 or 1 is its own end of the interval; rounding would miss it by 1e-17.
    low = np.where(successes <= 0, 0.0, np.maximum((centre - half) / scale, 0.0))
    high = np.where(successes >= n, 1.0, np.minimum((centre + half) / scale, 1.0))
    return low, high


def bounded(
    value: float, variance: float, *, n: float, centre: float | None = None, least: float = 0.0, most: float = 1.0
) -> tuple[float, float]:
    """95 % interval of an estimate between two bounds whose variance is known: Wilson's, for as many samples as would
    give a share that variance.

    Args:
        value: the estimate.
        variance: of it; where it is 0 (all right, or all wrong) it counts as a share of `n` samples.
        n: samples.
        centre: the estimate without its bias, where that is known.
        least: lowest possible value.
        most: highest.
    """
    span = most - least
    share = (value - least) / span
    inside = variance > 0 and 0 < share < 1
    trials = max(share * (1 - share) * span**2 / variance if inside else n, 1e-12)
    middle = share if centre is None else min(max((centre - least) / span, 0.0), 1.0)
    low, high = (float(end) for end in wilson(middle * trials, trials, least_trials=0.0))
    return least + span * min(low, share), least + span * max(high, share)


def jackknife(
    counts: ArrayLike, without: ArrayLike, value: float, *, least: float = 0.0, most: float = 1.0
) -> tuple[float, float]:
    """95 % interval by leaving out one sample at a time; it knows the bias of the estimate as well as its variance.

    For macro F1 of few samples per class it holds the truth where percentiles of resamples do not: 94 against 88 of 100
    for 10 samples in each of 10 classes. Source: Efron and Stein 1981, Annals of Statistics 9; the interval is `bounded`.

    Args:
        counts: (C,) samples of each kind.
        without: (C,) the estimate without one sample of that kind.
        value: the estimate with all.
        least: lowest possible value.
        most: highest.
    """
    counts, without = np.asarray(counts, np.float64), np.asarray(without, np.float64)
    n = counts.sum()
    known = np.isfinite(without) & (counts > 0)
    if n < 2 or not known.any():
        return bounded(value, 0.0, n=n, least=least, most=most)
    counts, without = counts[known], without[known]
    mean = (counts * without).sum() / counts.sum()
    variance = (n - 1) / n * (counts * np.square(without - mean)).sum()
    centre = value - (n - 1) * (mean - value)
    return bounded(value, float(variance), n=n, centre=float(centre), least=least, most=most)


def bootstrap(
    counts: ArrayLike,
    statistic: Statistic,
    *,
    strata: ArrayLike | None = None,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
) -> tuple[float, float]:
    """95 % percentile interval by resampling whole cells.

    A cell is what samples have in common as far as the statistic can see: a cell of the confusion matrix, a single
    sample, or a group of samples that belong together and are drawn together. Resampled counts of cells are
    multinomial, so thousands of predictions cost no more than the cells they fall into.

    Args:
        counts: (C,) integers, how often each cell was seen.
        statistic: resampled counts (R, C) -> values (R,); called with a few rows at a time.
        strata: (C,), cells that are resampled among themselves, such as those of one true class, so that every
            resample has as many of each stratum as the data had.
        seed: one seed, one interval.
        num_resamples: 1,000 by default.
    """
    return percentiles(resample(counts, statistic, strata=strata, seed=seed, num_resamples=num_resamples))


def resample(
    counts: ArrayLike,
    statistic: Statistic,
    *,
    strata: ArrayLike | None = None,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
) -> NDArray[np.float64]:
    """The values of a statistic, (R,) or (R, M) for M at once, in resamples; arguments as for `bootstrap`."""
    counts = np.asarray(counts, np.int64)
    strata = (
        np.zeros(len(counts), np.int64) if strata is None else np.unique(np.asarray(strata), return_inverse=True)[1]
    )
    members = [np.flatnonzero(strata == stratum) for stratum in range(int(strata.max()) + 1)]
    values = []
    for num_rows, source in _chunks(len(counts), seed, num_resamples):
        draws = np.random.Generator(source)
        drawn = np.empty((num_rows, len(counts)), np.int64)
        for cells in members:
            total = counts[cells].sum()
            drawn[:, cells] = draws.multinomial(total, counts[cells] / total, size=num_rows)
        values.append(statistic(drawn))
    return np.concatenate(values)


def resample_samples(
    num_samples: int,
    statistic: Statistic,
    *,
    strata: NDArray[np.int64] | None = None,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
) -> NDArray[np.float64]:
    """`resample` of single samples, by drawing them: several times faster than multinomial counts of as many cells.

    Args:
        num_samples: N.
        statistic: how often each sample was drawn (R, N) -> values (R,) or (R, M).
        strata: (N,), samples that are drawn among themselves.
        seed: one seed, one interval.
        num_resamples: 1,000 by default.
    """
    order = np.arange(num_samples) if strata is None else np.argsort(strata, kind="stable")
    sizes = np.array([num_samples]) if strata is None else np.unique(strata, return_counts=True)[1]
    first = np.repeat(np.cumsum(sizes) - sizes, sizes)  # of each place in that order: where its stratum begins
    size = np.repeat(sizes, sizes).astype(np.uint64)
    values = []
    for num_rows, source in _chunks(num_samples, seed, num_resamples):
        places = _uniform_integers(source, (num_rows, num_samples), size) + first
        places += num_samples * np.arange(num_rows)[:, None]
        counts = np.bincount(places.ravel(), minlength=num_rows * num_samples).reshape(num_rows, num_samples)
        drawn = np.empty_like(counts)
        drawn[:, order] = counts
        values.append(statistic(drawn))
    return np.concatenate(values)


def bootstrap_mean(
    values: NDArray[np.float64], *, seed: int = 0, num_resamples: int = NUM_RESAMPLES
) -> tuple[float, float]:
    """`bootstrap` of the mean of one value per sample, such as a loss, by drawing samples: 5 times faster for that.

    Args:
        values: (N,).
        seed: one seed, one interval.
        num_resamples: 1,000 by default.
    """
    means = []
    for num_rows, source in _chunks(len(values), seed, num_resamples):
        drawn = _uniform_integers(source, (num_rows, len(values)), np.uint64(len(values)))
        means.append(values[drawn].mean(axis=1))
    return percentiles(np.concatenate(means))


def percentiles(values: NDArray[np.float64]) -> tuple[float, float]:
    """The ends of the 95 % in the middle of (R,) values; NaN among them, as of a resample without a class, is left out."""
    values = values[~np.isnan(values)]
    if not len(values):
        return float("nan"), float("nan")
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _uniform_integers(
    source: np.random.Philox, shape: tuple[int, int], below: np.uint64 | NDArray[np.uint64]
) -> NDArray[np.int64]:
    """Integers from 0 to `below` - 1, of that shape: 32 random bits each, scaled."""
    size = shape[0] * shape[1]
    words = source.random_raw((size + 1) // 2).view(np.uint32)[:size].reshape(shape)
    return ((words.astype(np.uint64) * below) >> np.uint64(32)).astype(np.int64)


def _chunks(num_cells: int, seed: int, num_resamples: int) -> Iterator[tuple[int, np.random.Philox]]:
    """Cut the resamples into pieces that fit in memory, each with its own stream keyed by `kiln.random`."""
    size = max(1, _CHUNK_CELLS // num_cells)
    for start in range(0, num_resamples, size):
        key = random.bits(seed, Purpose.BOOTSTRAP, sample=start, num_draws=2)
        yield min(size, num_resamples - start), np.random.Philox(key=key)
