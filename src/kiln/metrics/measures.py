"""Kinds of metrics: how each gets its value, and its 95 % interval from samples or from groups of samples.

A table of a task (`kiln.tasks.class_metrics`, `kiln.tasks.label_metrics`) maps names to these. A value that does not exist,
such as the ROC area of a class that has all samples, is NaN without an interval.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from kiln.metrics import counts
from kiln.metrics.counts import Counts
from kiln.metrics.intervals import (
    NUM_RESAMPLES,
    Metric,
    bootstrap,
    bootstrap_mean,
    jackknife,
    percentiles,
    resample_samples,
    wilson,
)

Floats = NDArray[np.float64]
Ends = tuple[float, float]

_BUDGET = 10_000_000  # samples x resamples, of statistics that sort samples
LEAST_RESAMPLES = 200


class Answers(ABC):
    """What a model said of N labelled samples; each task has its own, with what its metrics share computed once.

    Attributes:
        n: samples.
        targets: (N,) or (N, K).
        strata: (N,) what resamples keep the sizes of, or None.
    """

    n: int
    targets: NDArray[Any]
    strata: NDArray[np.int64] | None

    @cached_property
    @abstractmethod
    def probabilities(self) -> Floats:
        """(N, K)."""


class Groups:
    """Samples that belong together (of a patient, a video), which an interval draws as a whole.

    Args:
        names: (N,) any values; equal ones are one group.
    """

    def __init__(self, names: NDArray[Any]) -> None:
        found, self.of = np.unique(np.asarray(names), return_inverse=True)
        self.num = len(found)

    @cached_property
    def sizes(self) -> Floats:
        """Samples of each group."""
        return np.bincount(self.of).astype(np.float64)

    def sums(self, values: NDArray) -> Floats:
        """Sums over each group of (N,) values, or of the columns of (N, K)."""
        values = np.asarray(values, np.float64)
        if values.ndim == 1:
            return np.bincount(self.of, values).astype(np.float64)
        return np.stack([self.sums(column) for column in values.T], axis=1)

    def bootstrap_mean(self, values: NDArray, *, seed: int) -> Ends:
        """Interval of the mean of (N,) values."""
        sums = self.sums(values)
        return bootstrap(np.ones(self.num), lambda drawn: (drawn @ sums) / (drawn @ self.sizes), seed=seed)


@dataclass(frozen=True)
class How:
    """How intervals are made: `seed` of resampling, `groups` or None, and whether they are wanted at all."""

    seed: int = 0
    groups: Groups | None = None
    intervals: bool = True

    @property
    def can(self) -> bool:
        """Whether there is an interval: asked for, and not of one group alone, which tells nothing of others."""
        return self.intervals and (self.groups is None or self.groups.num > 1)

    def finish(self, value: float, interval: Callable[[], Ends], n: int, *, higher_is_better: bool = True) -> Metric:
        """A metric; the interval is only made where there is one, and holds the value."""
        value = float(value)
        if not self.can or np.isnan(value):
            return Metric(value, None, None, n, higher_is_better)
        low, high = (float(end) for end in interval())
        if np.isnan(low) or np.isnan(high):
            return Metric(value, None, None, n, higher_is_better)
        return Metric(value, min(low, value), max(high, value), n, higher_is_better)


class Measure(Protocol):
    """One metric of a table."""

    def __call__(self, answers: Any, how: How, /) -> Metric: ...  # noqa: D102


@dataclass(frozen=True)
class Share:
    """The share of samples of which something holds: Wilson's interval."""

    holds: Callable[[Any], NDArray[np.bool_]]

    def __call__(self, answers: Any, how: How) -> Metric:
        """Measure."""
        holds = self.holds(answers)

        def interval() -> Ends:
            if how.groups is not None:
                return how.groups.bootstrap_mean(holds, seed=how.seed)
            low, high = wilson(holds.sum(), len(holds))
            return float(low), float(high)

        return how.finish(holds.mean(), interval, answers.n)


@dataclass(frozen=True)
class Mean:
    """The mean of one value per sample: bootstrap."""

    values: Callable[[Any], Floats]
    higher_is_better: bool = False

    def __call__(self, answers: Any, how: How) -> Metric:
        """Measure."""
        values = self.values(answers)

        def interval() -> Ends:
            if how.groups is not None:
                return how.groups.bootstrap_mean(values, seed=how.seed)
            return bootstrap_mean(values, seed=how.seed)

        return how.finish(values.mean(), interval, answers.n, higher_is_better=self.higher_is_better)


@dataclass(frozen=True)
class OfCounts:
    """A function of counts per class: jackknife over the cells of the confusion matrix, or the task's own interval.

    Attributes:
        statistic: of counts.
        least: lowest possible value.
        own: another interval from samples.
    """

    statistic: counts.Statistic
    least: float = 0.0
    own: Callable[[Any, How], Ends] | None = None

    def __call__(self, answers: Any, how: How) -> Metric:
        """Measure."""
        value = float(self.statistic(answers.counts))

        def interval() -> Ends:
            if how.groups is not None:
                units = Counts(*map(how.groups.sums, answers.units))
                once = np.ones(how.groups.num, np.int64)
                return percentiles(counts.resample_counts(units, once, [self.statistic], seed=how.seed)[:, 0])
            if self.own is not None:
                return self.own(answers, how)
            times, without = answers.without_one
            return jackknife(times, self.statistic(without), value, least=self.least)

        return how.finish(value, interval, answers.n)


@dataclass(frozen=True)
class OfSamples:
    """A function of all samples together: bootstrap within true classes, fewer resamples (not below 200) of many samples.

    Attributes:
        statistic: answers -> (how often each sample counts (R, N), or None for once) -> (R,).
    """

    statistic: Callable[[Any], Callable[[NDArray[np.int64] | None], Floats]]
    higher_is_better: bool = True

    def __call__(self, answers: Any, how: How) -> Metric:
        """Measure."""
        statistic = self.statistic(answers)

        def interval() -> Ends:
            rounds = int(np.clip(_BUDGET // answers.n, LEAST_RESAMPLES, NUM_RESAMPLES))
            if how.groups is None:
                values = resample_samples(
                    answers.n, statistic, strata=answers.strata, seed=how.seed, num_resamples=rounds
                )
            else:
                of, num = how.groups.of, how.groups.num
                values = resample_samples(
                    num, lambda drawn: statistic(drawn[:, of]), seed=how.seed, num_resamples=rounds
                )
            return percentiles(values)

        return how.finish(statistic(None)[0], interval, answers.n, higher_is_better=self.higher_is_better)


@dataclass(frozen=True)
class WithOwnInterval:
    """A value and an interval that has a method of its own: `interval(answers, how)`."""

    value: Callable[[Any], float]
    interval: Callable[[Any, How], Ends]
    higher_is_better: bool = True

    def __call__(self, answers: Any, how: How) -> Metric:
        """Measure."""
        value = self.value(answers)
        return how.finish(value, lambda: self.interval(answers, how), answers.n, higher_is_better=self.higher_is_better)


def groups_of(how: How) -> NDArray[np.int64] | None:
    """(N,) numbers of the groups, where there are any."""
    return None if how.groups is None else how.groups.of
