"""Is one model better than another on the same samples? Exact tests and intervals of a difference, from counts alone.

A difference is always second minus first. Samples on which both are right, or both wrong, say nothing of it: the test rests
on the others, which one of the two got right alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kiln.measure.seeds import student_quantile

Floats = NDArray[np.float64]

SIGNIFICANCE = 0.05
_Z = 1.959963984540054  # the 97.5 % point of the normal distribution
_Z_POWER = 0.8416212335729143  # the 80 % point
_HALVINGS = 60  # of an interval of length 2: to 2e-18


@dataclass(frozen=True, slots=True)
class ShareDifference:
    """The difference of two shares of the same samples.

    Attributes:
        value: second minus first.
        low: lower end of the 95 % interval.
        high: upper end.
        p: of the test that the two are alike; below 0.05 in 1 of 20 pairs that are.
        n: samples.
        only_first: samples that the first alone got right.
        only_second: samples that the second alone got right.
        detectable: the smallest difference that so many samples would have shown in 80 of 100 cases.
        num_groups: what was drawn independently; None where that is each sample.
    """

    value: float
    low: float
    high: float
    p: float
    n: int
    only_first: int
    only_second: int
    detectable: float
    num_groups: int | None = None


def compare_shares(
    first: NDArray[np.bool_], second: NDArray[np.bool_], groups: NDArray[np.int64] | None = None
) -> ShareDifference:
    """Compare what two models got right of the same samples.

    Without groups: McNemar's test with the mid-p value, which keeps its 5 % where the exact one is timid and the
    chi-squared one bold (Fagerland, Lydersen and Laake 2013, BMC Medical Research Methodology 13:91), and Tango's score
    interval. With groups, whose samples are alike: `sign_flip` on the groups, and Student's interval of their sums.

    Args:
        first: (N,) whether the first model was right, N > 0.
        second: (N,) the second model.
        groups: (N,) of each sample, 0 and up.
    """
    first, second = np.asarray(first, bool), np.asarray(second, bool)
    n = len(first)
    gained = second.astype(np.int64) - first
    only_first, only_second = int((gained < 0).sum()), int((gained > 0).sum())
    value = (only_second - only_first) / n
    if groups is None:
        low, high = (float(end) for end in score_interval(only_first, only_second, n))
        p, squares, num_groups = mcnemar(only_first, only_second), only_first + only_second, None
    else:
        sizes = np.bincount(groups)
        steps = np.bincount(groups, weights=gained).astype(np.int64)[sizes > 0]
        low, high = grouped_interval(steps, sizes[sizes > 0])
        p, squares, num_groups = sign_flip(steps), int(np.square(steps).sum()), len(steps)
    return ShareDifference(
        value, low, high, p, n, only_first, only_second, detectable_difference(squares, n), num_groups
    )


def mcnemar(only_first: int, only_second: int) -> float:
    """Mid-p value of McNemar's test: two-sided, with half the weight of what was seen.

    Args:
        only_first: samples that the first alone got right.
        only_second: samples that the second alone got right.
    """
    fewer, total = min(only_first, only_second), only_first + only_second
    logs = [
        math.lgamma(total + 1) - math.lgamma(k + 1) - math.lgamma(total - k + 1) - total * math.log(2)
        for k in range(fewer + 1)
    ]
    weights = np.exp(logs)
    return float(min(2 * weights[:-1].sum() + weights[-1], 1.0))


def sign_flip(steps: ArrayLike) -> float:
    """Mid-p value, exact, of a sum whose terms could each as well have had the other sign.

    Two models that are alike could change names within any group of samples. Of single samples this is McNemar's test.

    Args:
        steps: (G,) integers: what the second gained over the first in each group.
    """
    steps = np.asarray(steps, np.int64)
    sizes, counts = np.unique(np.abs(steps[steps != 0]), return_counts=True)
    chances = np.ones(1)  # of the sum, in steps of 2 from minus the sum of sizes: half of it is what turned positive
    for size, count in zip(sizes, counts, strict=True):
        for _ in range(count):
            grown = np.zeros(len(chances) + size)
            grown[: len(chances)] += chances / 2
            grown[size:] += chances / 2
            chances = grown
    positive = int(steps[steps > 0].sum())
    fewer = min(positive, len(chances) - 1 - positive)
    return float(min(2 * chances[:fewer].sum() + chances[fewer], 1.0))


def score_interval(only_first: ArrayLike, only_second: ArrayLike, n: ArrayLike) -> tuple[Floats, Floats]:
    """95 % interval of the difference of two shares of the same samples, good where few samples differ, or none.

    Source: Tango 1998, Statistics in Medicine 17, 891-908, eq. 8 and 9: what the score test does not reject.

    Args:
        only_first: any shape: samples that the first alone got right.
        only_second: samples that the second alone got right.
        n: samples, > 0.
    Returns: low and high of (second minus first), of the broadcast shape.
    """
    minus, plus, n = np.broadcast_arrays(*(np.asarray(part, np.float64) for part in (only_first, only_second, n)))

    def too_low(difference: Floats) -> Floats:
        """The score of a supposed difference: how many standard errors lie below what was seen."""
        b = (2 * n - plus + minus) * difference - plus - minus
        c = -minus * difference * (1 - difference)
        share = (np.sqrt(np.maximum(b * b - 8 * n * c, 0)) - b) / (4 * n)  # that the first alone gets right
        variance = n * np.maximum(2 * share + difference * (1 - difference), 0)
        distance = plus - minus - n * difference
        far = np.where(distance == 0, 0.0, np.copysign(np.inf, distance))
        return np.divide(distance, np.sqrt(variance), out=far, where=variance > 0)

    centre = (plus - minus) / n
    ends = []
    for outer, wanted in ((-1.0, _Z), (1.0, -_Z)):
        inside, outside = centre.copy(), np.full(centre.shape, outer)
        for _ in range(_HALVINGS):
            middle = (inside + outside) / 2
            held = np.abs(too_low(middle)) <= abs(wanted)
            inside, outside = np.where(held, middle, inside), np.where(held, outside, middle)
        ends.append(inside)
    return ends[0], ends[1]


def grouped_interval(steps: ArrayLike, sizes: ArrayLike) -> tuple[float, float]:
    """95 % interval of a difference of shares, where samples come in groups: Student's, of the groups.

    Args:
        steps: (G,) what the second gained over the first in each group.
        sizes: (G,) samples of each group, > 0.
    """
    steps, sizes = np.asarray(steps, np.float64), np.asarray(sizes, np.float64)
    num_groups, n = len(steps), sizes.sum()
    if num_groups < 2:
        return -1.0, 1.0
    if not steps.any():
        low, high = score_interval(0, 0, num_groups)
        return float(low), float(high)
    value = steps.sum() / n
    variance = num_groups / (num_groups - 1) * np.square(steps - sizes * value).sum() / n**2
    half = student_quantile(num_groups - 1) * math.sqrt(variance)
    return float(max(value - half, -1.0)), float(min(value + half, 1.0))


def detectable_difference(squares: float, n: int) -> float:
    """The smallest true difference of shares that a test at 5 % finds in 80 of 100 samples of this kind.

    Args:
        squares: the number of samples that only one model got right; of groups, the sum of their squared gains. Two are
            added, so that models which never differed are not taken for models that cannot.
        n: samples.
    """
    return min((_Z + _Z_POWER) * math.sqrt(squares + 2) / n, 1.0)


def holm(p_values: Sequence[float]) -> list[float]:
    """P values of several tests, so corrected that in 19 of 20 cases none of the true suppositions is rejected.

    Source: Holm 1979, Scandinavian Journal of Statistics 6, 65-70.
    """
    order = np.argsort(p_values, kind="stable")
    corrected, so_far = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        so_far = max(so_far, min((len(p_values) - rank) * float(p_values[int(index)]), 1.0))
        corrected[int(index)] = so_far
    return corrected
