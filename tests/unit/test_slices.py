"""Slices: the exact test and its correction against scipy and by hand, and what is found, and what is not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from kiln.measure.slices import LEAST_SAMPLES, compare_slices, difference_interval, fisher_below, holm, quantile_bins


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 80), st.data())
def test_the_test_is_fishers(n, rest_n, data):
    hits, rest_hits = data.draw(st.integers(0, n)), data.draw(st.integers(0, rest_n))
    table = [[hits, n - hits], [rest_hits, rest_n - rest_hits]]
    expected = stats.fisher_exact(table, alternative="less").pvalue
    assert fisher_below(n, hits, rest_n, rest_hits) == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])
    assert len(holm([])) == 0


def test_the_interval_of_a_difference_is_newcombes():
    # Newcombe 1998, table II, example (a), method 10: 56/70 - 48/80
    assert difference_interval(56, 70, 48, 80) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    assert difference_interval(10, 10, 0, 20) == pytest.approx((0.6791, 1.0), abs=5e-5)


def test_a_planted_weak_part_is_found_and_nothing_else():
    generator = np.random.Generator(np.random.Philox(3))
    group = np.array(["night" if k % 8 == 0 else "day" for k in range(1600)])
    right = generator.random(1600) < np.where(group == "night", 0.6, 0.9)
    other = [str(k % 10) for k in range(1600)]
    found = compare_slices(right, {"time": group.tolist(), "digit": other})
    assert [(one.kind, one.name) for one in found if one.is_below] == [("time", "night")]
    worst = found[0]
    assert (worst.n, worst.rest_n) == (200, 1400)
    assert worst.low < worst.difference < worst.high < 0
    assert worst.accuracy == pytest.approx(right[::8].mean())
    assert len(found) == 12


def test_chance_alone_is_rarely_taken_for_a_weak_part():
    generator = np.random.Generator(np.random.Philox(5))
    columns = {f"kind {k}": [str(value) for value in generator.integers(0, 6, 400)] for k in range(4)}
    alarms = sum(any(one.is_below for one in compare_slices(generator.random(400) < 0.8, columns)) for _ in range(200))
    assert alarms <= 18  # 10 expected at most; more than 18 has a chance below 1 %


def test_small_parts_and_unknown_values_are_left_out():
    right = [True] * 30
    values: list[str | None] = ["a"] * LEAST_SAMPLES + ["b"] * (LEAST_SAMPLES - 1) + [None] * 11
    assert compare_slices(right, {"kind": values}) == []
    assert compare_slices(right, {"kind": ["all"] * 30}) == []
    known: list[str | None] = ["a"] * 10 + ["b"] * 10 + [None] * 10
    assert [(one.n, one.rest_n) for one in compare_slices(right, {"kind": known})] == [(10, 10), (10, 10)]


def test_quarters():
    bins, borders = quantile_bins(np.arange(80.0))
    assert [bins.count(quarter) for quarter in range(4)] == [20, 20, 20, 20]
    assert list(borders) == sorted(borders)
    assert quantile_bins(np.full(80, 3.0))[0] == [None] * 80
    assert quantile_bins(np.arange(10.0))[0] == [None] * 10
    holed, _ = quantile_bins(np.append(np.arange(80.0), np.nan))
    assert holed[-1] is None
    assert None not in holed[:-1]
