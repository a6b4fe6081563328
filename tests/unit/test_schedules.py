"""Schedules: pure functions of the step that start above zero, join without a jump and end where they say."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kiln.errors import UsageError
from kiln.optim import schedules
from kiln.optim.schedules import Plateau, Rates, as_rates, blend, constant, cosine, set_rates, with_warmup

MAKERS = {
    "constant": constant,
    "linear": schedules.linear,
    "polynomial": partial(schedules.polynomial, power=2.0),
    "cosine": cosine,
    "exponential": partial(schedules.exponential, gamma=0.9, every=1),
    "step": partial(schedules.step, every=1, gamma=0.5),
    "multistep": partial(schedules.multistep, milestones=[1]),
    "inverse_sqrt": schedules.inverse_sqrt,
    "wsd": schedules.wsd,
    "cosine_restarts": partial(schedules.cosine_restarts, period=1),
    "cyclic": partial(schedules.cyclic, up=1),
    "one_cycle": schedules.one_cycle,
    "chained": partial(schedules.chained, pieces=[cosine, schedules.one_cycle]),
    "sequential": partial(schedules.sequential, pieces=[cosine, schedules.wsd], milestones=[1]),
}
FALLING = ("linear", "polynomial", "cosine", "wsd")
lengths = st.integers(2, 400)
makers = st.sampled_from(sorted(MAKERS))


def curve(schedule, total):
    """Factors of the first group at every step."""
    return [as_rates(schedule(step)).lr for step in range(total)]


def optimizer_with(*rates, kind=torch.optim.SGD, **options):
    layers = nn.ModuleList([nn.Linear(1, 1) for _ in rates])
    groups = [{"params": [*layer.parameters()], "lr": lr} for layer, lr in zip(layers, rates, strict=True)]
    return kind(groups, **options)


# Pure functions of the step.


@settings(max_examples=60, deadline=None)
@given(makers, st.integers(2, 80), st.integers(0, 40), st.data())
def test_a_schedule_has_no_memory(name, total, warmup, data):
    schedule = with_warmup(MAKERS[name], total, warmup_steps=min(warmup, total - 1))
    forwards = [schedule(step) for step in range(total)]
    order = data.draw(st.permutations(range(total)))
    assert [schedule(step) for step in order] == [forwards[step] for step in order]
    again = with_warmup(MAKERS[name], total, warmup_steps=min(warmup, total - 1))
    assert [again(step) for step in reversed(range(total))] == forwards[::-1]  # what a resume computes: the same bits


def test_a_product_of_functions_has_none_either():
    functions = [lambda step: 1 - 1 / (step + 2), lambda step: 0.9]
    schedule, again = (schedules.multiplicative(50, functions=functions) for _ in range(2))
    assert [schedule(step) for step in range(50)] == [again(step) for step in reversed(range(50))][::-1]


@settings(max_examples=60, deadline=None)
@given(makers, lengths)
def test_steps_beyond_the_end_still_have_a_rate(name, total):
    schedule = MAKERS[name](total)
    assert all(math.isfinite(rate) and 0 <= rate <= 1 for rate in curve(schedule, 2 * total))
    if name in FALLING:
        assert schedule(total - 1) == schedule(5 * total) == pytest.approx(0, abs=1e-15)


# Tables by hand.


def test_a_warmup_and_a_cosine_by_hand():
    schedule = with_warmup(cosine, 13, warmup_steps=3, min_fraction=0.1)
    expected = [1 / 3, 2 / 3, 1.0] + [0.1 + 0.45 * (1 + math.cos(math.pi * k / 10)) for k in range(1, 11)]
    assert curve(schedule, 13) == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize(
    ("shape", "falling"),
    [
        ("linear", [0.75, 0.5, 0.25, 0]),
        ("cosine", [0.85355339, 0.5, 0.14644661, 0]),
        ("sqrt", [0.5, 0.29289322, 0.1339746, 0]),
    ],
)
def test_warmup_stable_decay_by_hand(shape, falling):
    schedule = with_warmup(schedules.wsd, 12, warmup_steps=4, decay=4, decay_shape=shape)
    assert curve(schedule, 12) == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 1, 1, *falling])
    lowest = with_warmup(schedules.wsd, 12, warmup_steps=4, decay=4, decay_shape=shape, min_fraction=0.2)
    assert curve(lowest, 12) == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 1, 1, *(0.2 + 0.8 * x for x in falling)])


def test_inverse_square_root_is_that_of_attention_is_all_you_need():
    warmup, peak = 40, 40**-0.5
    schedule = with_warmup(schedules.inverse_sqrt, 400, warmup_steps=warmup, timescale=warmup)
    noam = [min((step + 1) ** -0.5, (step + 1) * warmup**-1.5) / peak for step in range(400)]
    assert curve(schedule, 400) == pytest.approx(noam)


def test_shapes_of_a_warmup():
    warm = partial(with_warmup, constant, 10, warmup_steps=4)
    assert curve(warm(), 5) == pytest.approx([0.25, 0.5, 0.75, 1, 1])
    assert curve(warm(shape="exponential", start=0.001), 5) == pytest.approx([0.001, 0.01, 0.1, 1, 1])
    assert curve(warm(shape="constant"), 5) == pytest.approx([1 / 3, 1 / 3, 1 / 3, 1 / 3, 1])
    assert curve(warm(start=0.4), 4) == pytest.approx([0.4, 0.6, 0.8, 1])


# Traps.


@settings(max_examples=200, deadline=None)
@given(makers, lengths, st.integers(0, 400), st.sampled_from(["linear", "exponential"]))
def test_trap_a_warmup_neither_starts_at_zero_nor_jumps(name, total, warmup, shape):
    warmup = min(warmup, total - 1)
    schedule = with_warmup(MAKERS[name], total, warmup_steps=warmup, shape=shape)
    rates = curve(schedule, total)
    if warmup < 2:
        assert rates == curve(MAKERS[name](total), total)
        return
    main = MAKERS[name](total - warmup + 1)
    assert 0 < rates[0] < rates[warmup - 1]
    assert rates[:warmup] == sorted(rates[:warmup])
    assert rates[warmup - 1] == as_rates(main(0)).lr  # the last step of one is the first of the other
    assert rates[warmup - 1 :] == curve(main, total - warmup + 1)


def test_trap_a_warmup_leads_momentum_and_groups_along():
    schedule = with_warmup(schedules.one_cycle, 50, warmup_steps=5, div_factor=2.0)
    assert [schedule(step) for step in (0, 4)] == [Rates(pytest.approx(0.1), 0.95), Rates(0.5, 0.95)]
    groups = with_warmup(schedules.lambda_, 50, warmup_steps=4, functions=[lambda step: 1.0, lambda step: 0.5])
    assert groups(0).lr == pytest.approx((0.25, 0.125))


@pytest.mark.parametrize("shape", ["linear", "exponential", "constant"])
@pytest.mark.parametrize(("total", "warmup"), [(10, 10), (10, 11), (3, 300), (5, -1)])
def test_trap_a_warmup_does_not_outlast_the_run(total, warmup, shape):
    with pytest.raises(UsageError, match=f"a warmup of {warmup} steps in a training of {total}\n  expected: less"):
        with_warmup(cosine, total, warmup_steps=warmup, shape=shape)


def test_trap_a_schedule_counts_steps_not_epochs():
    """An every of 30, meant as epochs of 100 steps each, drops the rate after 30 steps: all lengths here are steps."""
    schedule = schedules.step(3000, every=30, gamma=0.1)
    assert [schedule(29), schedule(30)] == [1, pytest.approx(0.1)]
    with pytest.raises(TypeError, match="every"):
        schedules.exponential(3000, gamma=0.95)  # per what? It has to be said.


@pytest.mark.parametrize(
    "make",
    [
        partial(schedules.step, every=11),
        partial(schedules.exponential, gamma=0.9, every=11),
        partial(schedules.multistep, milestones=[5, 11]),
        partial(schedules.cosine_restarts, period=11),
        partial(schedules.cyclic, up=5, down=11),
        partial(schedules.wsd, decay=11),
        partial(schedules.inverse_sqrt, timescale=11),
        partial(cosine, length=11),
        partial(schedules.sequential, pieces=[cosine, cosine], milestones=[11]),
    ],
)
def test_trap_no_piece_outlasts_the_run(make):
    with pytest.raises(UsageError, match="= 11 steps\n  expected: 1 to 10: the schedule has no more"):
        make(10)
    make(11)


@pytest.mark.parametrize("total", [1, 2, 3])
@pytest.mark.parametrize("make", [cosine, schedules.linear, schedules.polynomial, schedules.wsd])
def test_the_shortest_runs_begin_at_full_rate(make, total):
    assert make(total)(0) == 1.0


# What an optimizer gets.


def test_rates_are_always_taken_of_the_base_rate_of_each_group():
    optimizer = optimizer_with(0.1, 0.01)
    for factor in (0.5, 0.5, 1.0, 0.0, 0.25):
        assert set_rates(optimizer, factor) == 0.1 * factor
        assert [group["lr"] for group in optimizer.param_groups] == [0.1 * factor, 0.01 * factor]
    assert set_rates(optimizer, np.float32(0.5)) == 0.05  # as a user's own function may return
    set_rates(optimizer, Rates((0.5, 2.0)), scale=0.1)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.005, 0.002])


def test_momentum_goes_where_the_optimizer_has_it():
    sgd, adam = optimizer_with(0.1, momentum=0.9), optimizer_with(0.1, kind=torch.optim.AdamW, betas=(0.9, 0.98))
    for optimizer in (sgd, adam):
        set_rates(optimizer, Rates(0.5, 0.85))
    assert sgd.param_groups[0]["momentum"] == 0.85
    assert adam.param_groups[0]["betas"] == (0.85, 0.98)
    set_rates(sgd, Rates(0.5))
    assert sgd.param_groups[0]["momentum"] == 0.85
    with pytest.raises(UsageError, match="neither momentum nor betas"):
        set_rates(optimizer_with(0.1, kind=torch.optim.Adagrad), Rates(0.5, 0.85))


@pytest.mark.parametrize("factor", [-0.1, math.nan, math.inf, None, "fast", Rates((0.1, -1.0))])
def test_a_factor_that_is_no_factor_is_an_error(factor):
    with pytest.raises(UsageError, match="the schedule gives the factor"):
        set_rates(optimizer_with(0.1), factor)


def test_as_many_factors_as_groups():
    with pytest.raises(UsageError, match="gives 3 factors\n  expected: one for each of the 2 groups"):
        set_rates(optimizer_with(0.1, 0.2), Rates((1.0, 1.0, 1.0)))


def test_what_lies_between_two_points():
    assert blend(1.0, 0.0, 0.25) == 0.75
    assert blend(Rates(1.0, 0.8), Rates((0.0, 0.5), 0.9), 0.5) == Rates((0.5, 0.75), pytest.approx(0.85))
    assert blend(1.0, Rates(0.0, 0.9), 0.5) == Rates(0.5, 0.9)


def test_a_chain_multiplies_rates_and_keeps_momentum():
    schedule = schedules.chained(20, pieces=[schedules.one_cycle, lambda total: lambda step: 0.5])
    alone = schedules.one_cycle(20)
    assert [schedule(step) for step in range(20)] == [Rates(0.5 * alone(s).lr, alone(s).momentum) for s in range(20)]


# Arguments.


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(schedules.exponential, gamma=0, every=1), "gamma = 0\n  expected: a number > 0"),
        (partial(schedules.multistep, milestones=[5, 3]), r"milestones = \[5, 3\]\n  expected: each later"),
        (partial(schedules.wsd, decay_shape="round"), "decay_shape = 'round'\n  expected: linear or cosine or sqrt"),
        (partial(schedules.cyclic, up=2, mode="square"), "mode = 'square'"),
        (
            partial(schedules.cyclic, up=2, mode="exp_range"),
            "gamma = None\n  expected: a number > 0 for mode exp_range",
        ),
        (partial(schedules.cyclic, up=2, gamma=0.9), "gamma = 0.9\n  expected: mode = exp_range with it"),
        (partial(schedules.cyclic, up=2, min_fraction=0.0), "the first step has this rate"),
        (partial(schedules.cyclic, up=2, momentum=(0.9, 0.8)), r"momentum = \[0.9, 0.8\]"),
        (partial(schedules.one_cycle, pct_start=30), "pct_start = 30\n  expected: 0 to 1"),
        (partial(schedules.one_cycle, anneal="sin"), "anneal = 'sin'"),
        (partial(schedules.sequential, pieces=[cosine], milestones=[5]), "1 milestones for 1 pieces"),
        (partial(schedules.chained, pieces=[]), "at least one schedule"),
        (partial(with_warmup, cosine, warmup_steps=3, start=0.0), "start = 0.0\n  expected: a number > 0"),
    ],
)
def test_arguments_that_cannot_be(make, message):
    with pytest.raises(UsageError, match=message):
        make(10)


# Plateau.


def test_a_plateau_by_hand():
    plateau = Plateau(reduce=0.5, patience=1, cooldown=1, threshold=0.0)
    told = [plateau.update(value) for value in [1.0, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9]]
    #                                    best best  bad reduce cool bad  reduce
    assert told == [False, False, False, True, False, False, True]
    assert plateau.factor == 0.25


def test_a_plateau_goes_on_from_its_state():
    values = [0.5, 0.6, 0.6, 0.6, 0.6, 0.55, 0.61, 0.61, 0.61, 0.61, 0.61]
    whole = Plateau(patience=1, cooldown=1)
    factors = [whole.update(value, higher_is_better=True) or whole.factor for value in values]
    for cut in range(len(values)):
        first, second = Plateau(patience=1, cooldown=1), Plateau(patience=1, cooldown=1)
        found = [first.update(value, higher_is_better=True) or first.factor for value in values[:cut]]
        second.load_state(first.state())
        found += [second.update(value, higher_is_better=True) or second.factor for value in values[cut:]]
        assert found == factors
    assert whole.factor < 1


@pytest.mark.parametrize("name", ["reduce", "patience", "threshold", "threshold_mode", "cooldown", "min_fraction"])
def test_settings_of_a_plateau_that_cannot_be(name):
    with pytest.raises(UsageError, match=f"^{name} = -1"):
        Plateau(**{name: -1})
