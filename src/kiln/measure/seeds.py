"""Is one recipe better than another? The unit is a training: its seed moves the result as much as many a change does."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

LEAST_SEEDS = 3
"""With fewer there is no telling how much the seed matters."""
_LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class MeanDifference:
    """The difference of two means over trainings, second minus first.

    Attributes:
        value: of the means.
        low: lower end of the 95 % interval.
        high: upper end.
        p: of the test that there is none.
        degrees: of freedom.
    """

    value: float
    low: float
    high: float
    p: float
    degrees: float


def welch(first: ArrayLike, second: ArrayLike) -> MeanDifference:
    """The difference of means of independent trainings, each recipe with a spread of its own.

    Source: Welch 1947, Biometrika 34, 28-35.

    Args:
        first: (S,) one value per training, S > 1.
        second: (T,).
    """
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    parts = [values.var(ddof=1) / len(values) for values in (first, second)]
    value, total = float(second.mean() - first.mean()), sum(parts)
    if total == 0:
        return _around(value, 0.0, len(first) + len(second) - 2.0)
    inverse = sum((part / total) ** 2 / (len(values) - 1) for part, values in zip(parts, (first, second), strict=True))
    return _around(value, math.sqrt(total), 1 / inverse)


def paired_by_seed(first: Mapping[int, float], second: Mapping[int, float]) -> MeanDifference | None:
    """The mean difference of trainings with the same seed; None where fewer than `LEAST_SEEDS` are shared.

    Sharper than `welch` where a seed does the same to both recipes, such as deal out the same split.

    Args:
        first: seed -> value.
        second: seed -> value.
    """
    shared = sorted(first.keys() & second.keys())
    if len(shared) < LEAST_SEEDS:
        return None
    gains = np.array([second[seed] - first[seed] for seed in shared])
    error = gains.std(ddof=1) / math.sqrt(len(gains))
    return _around(float(gains.mean()), float(error), len(gains) - 1.0)


def student_within(distance: float, degrees: float) -> float:
    """The share of Student's distribution between minus and plus `distance` standard errors.

    Args:
        distance: >= 0.
        degrees: of freedom, > 0.
    """
    nodes, weights = _GAUSS
    log_scale = math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2) + math.log(2 / math.sqrt(math.pi))
    # With t = sqrt(degrees) tan(angle) the density is a power of the cosine; beyond 40 its end carries nothing.
    angle = min(math.atan(distance / math.sqrt(degrees)), 40 / math.sqrt(degrees))
    logs = (degrees - 1) * np.log(np.cos(angle * (nodes + 1) / 2))
    return min(float(np.exp(log_scale + logs) @ weights) * angle / 2, 1.0)


def student_quantile(degrees: float, *, level: float = _LEVEL) -> float:
    """How many standard errors on each side of 0 hold `level` of Student's distribution; arguments as above."""
    low, high = 0.0, 1.0
    while student_within(high, degrees) < level:
        high *= 2
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if student_within(middle, degrees) < level else (low, middle)
    return low


_GAUSS = np.polynomial.legendre.leggauss(128)
_HALVINGS = 60


def _around(value: float, error: float, degrees: float) -> MeanDifference:
    if error == 0:  # without any spread the difference is exact, or there is none
        return MeanDifference(value, value, value, float(value == 0), degrees)
    half = student_quantile(degrees) * error
    p = 1 - student_within(abs(value) / error, degrees)
    return MeanDifference(value, value - half, value + half, max(p, 0.0), degrees)
