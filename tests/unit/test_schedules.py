"""Schedules: pure functions of the step that start above zero, join without a jump and end where they say."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kiln.optim.schedules import WARMUP_SHARE, constant, cosine, set_rates, with_warmup

lengths = st.integers(1, 500)


def test_a_table_by_hand():
    factor = with_warmup(cosine, 13, warmup_steps=3, min_fraction=0.1)
    expected = [1 / 3, 2 / 3, 1.0] + [0.1 + 0.45 * (1 + math.cos(math.pi * k / 10)) for k in range(1, 11)]
    assert [factor(step) for step in range(13)] == expected
    assert factor(12) == pytest.approx(0.1)


@settings(max_examples=200, deadline=None)
@given(lengths, st.integers(0, 600), st.floats(0, 1), st.sampled_from([cosine, constant]))
def test_trap_a_warmup_neither_starts_at_zero_nor_jumps_nor_outlasts_the_run(total, warmup, low, make):
    factor = with_warmup(make, total, warmup_steps=warmup, min_fraction=low)
    rates = [factor(step) for step in range(total)]
    assert 0 < rates[0] <= 1
    assert all(0 <= rate <= 1 for rate in rates)
    peak = rates.index(1.0)
    assert peak < max(1, math.floor(total * WARMUP_SHARE))
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    if make is cosine and total - peak > 1:
        assert rates[-1] == pytest.approx(low, abs=1e-12)
    # No step moves the rate further than the steepest place of either piece allows.
    steepest = max(1 / max(peak + 1, 1), math.pi / 2 / max(total - 1 - peak, 1))
    assert all(abs(b - a) <= steepest * (1 + 1e-9) for a, b in itertools.pairwise(rates))


@settings(max_examples=50, deadline=None)
@given(lengths, st.integers(0, 100), st.data())
def test_a_schedule_has_no_memory(total, warmup, data):
    factor = with_warmup(cosine, total, warmup_steps=warmup, min_fraction=0.01)
    forwards = [factor(step) for step in range(total)]
    order = data.draw(st.permutations(range(total)))
    assert [factor(step) for step in order] == [forwards[step] for step in order]
    again = with_warmup(cosine, total, warmup_steps=warmup, min_fraction=0.01)
    assert [again(step) for step in range(total)] == forwards  # what a resume computes: exactly the same


def test_a_step_beyond_the_end_keeps_the_last_rate():
    factor = cosine(10, min_fraction=0.2)
    assert factor(9) == pytest.approx(0.2)
    assert factor(50) == factor(9)


@pytest.mark.parametrize("total", [1, 2, 3])
def test_the_shortest_runs_train_at_full_rate_first(total):
    assert with_warmup(cosine, total, warmup_steps=100, min_fraction=0.0)(0) == 1.0


def test_constant_is_constant():
    assert {constant(10)(step) for step in range(20)} == {1.0}


def test_rates_are_always_taken_of_the_base_rate_of_each_group():
    layers = nn.ModuleList([nn.Linear(1, 1), nn.Linear(1, 1)])
    groups = [{"params": [*layer.parameters()], "lr": lr} for layer, lr in zip(layers, (0.1, 0.01), strict=True)]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    for factor in (0.5, 0.5, 1.0, 0.0, 0.25):
        assert set_rates(optimizer, factor) == 0.1 * factor
        assert [group["lr"] for group in optimizer.param_groups] == [0.1 * factor, 0.01 * factor]
