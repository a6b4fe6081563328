"""Tests and intervals of differences against scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from kiln.measure.paired import mcnemar
from kiln.measure.seeds import paired_by_seed, student_quantile, student_within, welch


@pytest.mark.parametrize(("first", "second"), [(0, 1), (3, 9), (10, 10), (7, 40), (450, 520), (4_800, 5_200)])
def test_mid_p(first, second):
    """The exact p value less half the weight of what was seen, on both sides."""
    total, fewer = first + second, min(first, second)
    exact = stats.binomtest(fewer, total, 0.5).pvalue
    expected = 1.0 if first == second else exact - stats.binom.pmf(fewer, total, 0.5)
    assert mcnemar(first, second) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("degrees", [1, 1.7, 2, 3.4, 10, 99.5, 1e4, 1e6])
def test_student(degrees):
    assert student_quantile(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=1e-8)
    for distance in (0.0, 0.3, 2.0, 12.0):
        expected = stats.t.cdf(distance, degrees) - stats.t.cdf(-distance, degrees)
        assert student_within(distance, degrees) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("sizes", [(3, 3), (3, 7), (5, 4)])
def test_welch_and_paired(sizes):
    rng = np.random.default_rng(sum(sizes))
    first, second = rng.normal(0.8, 0.01, sizes[0]), rng.normal(0.81, 0.03, sizes[1])
    found, expected = welch(first, second), stats.ttest_ind(second, first, equal_var=False)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval()), abs=1e-9)
    assert (found.p, found.degrees) == pytest.approx((expected.pvalue, expected.df), abs=1e-9)
    shared = min(sizes)
    by_seed = paired_by_seed(dict(enumerate(first)), dict(enumerate(second)))
    expected = stats.ttest_rel(second[:shared], first[:shared])
    assert by_seed is not None
    assert (by_seed.low, by_seed.high) == pytest.approx(tuple(expected.confidence_interval()), abs=1e-9)
    assert by_seed.p == pytest.approx(expected.pvalue, abs=1e-9)
