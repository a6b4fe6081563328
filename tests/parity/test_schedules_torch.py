"""Schedules against torch's own schedulers over whole curves: rates and momenta at each optimizer step."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim import lr_scheduler as theirs

from kiln.optim import schedules as ours
from kiln.optim.schedules import set_rates

TOLERANCE = 1e-12  # of the group's base rate; torch multiplies its way along the curve and gathers rounding errors
BASES = (0.3, 0.007, 2.0)


def optimizer_of(kind, bases):
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": base} for base in bases]
    return torch.optim.AdamW(groups) if kind == "adamw" else torch.optim.SGD(groups, lr=1.0, momentum=0.9)


def momenta(optimizer):
    return [group["betas"][0] if "betas" in group else group["momentum"] for group in optimizer.param_groups]


def curve_of_torch(make, steps, bases=BASES, kind="sgd"):
    """What the optimizer has at each of its steps, where the scheduler is stepped after it."""
    optimizer = optimizer_of(kind, bases)
    scheduler = make(optimizer)
    curve = []
    for _ in range(steps):
        curve.append([*(group["lr"] for group in optimizer.param_groups), *momenta(optimizer)])
        optimizer.step()
        scheduler.step()
    return curve


def curve_of_ours(schedule, steps, bases=BASES, kind="sgd"):
    """The same where the rates of a schedule are set before each step."""
    optimizer = optimizer_of(kind, bases)
    curve = []
    for step in range(steps):
        set_rates(optimizer, schedule(step))
        curve.append([*(group["lr"] for group in optimizer.param_groups), *momenta(optimizer)])
        optimizer.step()
    return curve


def check(schedule, make, steps, *, kind="sgd", bases=BASES):
    """Compare whole curves. `make` takes an optimizer with one group and its base rate: torch's lowest rates are those of
    all groups together, ours are shares of each group's own.
    """
    found = curve_of_ours(schedule, steps, bases, kind)
    wanted = [
        curve_of_torch(lambda optimizer, base=base: make(optimizer, base), steps, (base,), kind) for base in bases
    ]
    assert len(found) == steps
    for step, row in enumerate(found):
        for place, base in enumerate(bases):
            lr, momentum = wanted[place][step]
            assert row[place] == pytest.approx(lr, rel=0, abs=TOLERANCE * base), (step, base)
            assert row[len(bases) + place] == pytest.approx(momentum, rel=TOLERANCE), (step, base)
    return found


totals = st.integers(2, 150)
shares = st.floats(0, 1)
many = settings(max_examples=25, deadline=None)


@many
@given(totals, st.floats(0.01, 1), st.integers(1, 300))
def test_constant(total, factor, length):
    length = min(length, total)
    check(ours.constant(total, factor=factor, length=length), lambda o, _: theirs.ConstantLR(o, factor, length), total)


@many
@given(totals, st.floats(0.01, 1), shares, st.integers(1, 300))
def test_linear(total, start, end, length):
    length = min(length, total)
    schedule = ours.linear(total, start_factor=start, min_fraction=end, length=length)
    check(schedule, lambda o, _: theirs.LinearLR(o, start, end, length), total)


@many
@given(totals, st.floats(0.9, 1.001))
def test_exponential(total, gamma):
    check(ours.exponential(total, gamma=gamma, every=1), lambda o, _: theirs.ExponentialLR(o, gamma), total)


@many
@given(totals, st.integers(1, 100), st.floats(0.01, 1))
def test_step(total, every, gamma):
    every = min(every, total)
    check(ours.step(total, every=every, gamma=gamma), lambda o, _: theirs.StepLR(o, every, gamma), total)


@many
@given(totals, st.lists(st.integers(1, 300), max_size=5), st.floats(0.01, 1))
def test_multistep(total, milestones, gamma):
    milestones = sorted(min(milestone, total) for milestone in milestones)
    schedule = ours.multistep(total, milestones=milestones, gamma=gamma)
    check(schedule, lambda o, _: theirs.MultiStepLR(o, milestones, gamma), total)


@many
@given(totals, st.floats(0.1, 4), st.integers(1, 300))
def test_polynomial(total, power, length):
    length = min(length, total)
    schedule = ours.polynomial(total, power=power, length=length)
    check(schedule, lambda o, _: theirs.PolynomialLR(o, length, power), total)


@pytest.mark.parametrize("total", [2, 10, 101, 1000])
@pytest.mark.parametrize("low", [0.0, 0.01, 0.5])
def test_cosine(total, low):
    schedule = ours.cosine(total, min_fraction=low)
    check(schedule, lambda o, base: theirs.CosineAnnealingLR(o, total - 1, low * base), total)


@many
@given(totals, st.integers(1, 100), shares)
def test_cosine_that_rises_again(total, length, low):
    length = min(length, total)
    schedule = ours.cosine(total, length=length, min_fraction=low, periodic=True)
    check(schedule, lambda o, base: theirs.CosineAnnealingLR(o, length, low * base), total)


@many
@given(totals, st.integers(1, 50), st.integers(1, 3), shares)
def test_cosine_restarts(total, period, multiplier, low):
    period = min(period, total)
    schedule = ours.cosine_restarts(total, period=period, multiplier=multiplier, min_fraction=low)
    check(schedule, lambda o, base: theirs.CosineAnnealingWarmRestarts(o, period, multiplier, low * base), total)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
@pytest.mark.parametrize("mode", ["triangular", "triangular2", "exp_range"])
@settings(max_examples=8, deadline=None)
@given(totals, st.integers(1, 60), st.integers(1, 60), st.floats(0.001, 1))
def test_cyclic(kind, mode, total, up, down, low):
    up, down = min(up, total), min(down, total)
    gamma = 0.99 if mode == "exp_range" else None
    schedule = ours.cyclic(total, up=up, down=down, mode=mode, gamma=gamma, min_fraction=low)

    def make(optimizer, base):
        return theirs.CyclicLR(optimizer, low * base, base, up, down, mode=mode, gamma=gamma or 1.0)

    check(schedule, make, total, kind=kind)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
@pytest.mark.parametrize("anneal", ["cos", "linear"])
@settings(max_examples=8, deadline=None)
@given(st.integers(4, 300), st.floats(0.01, 0.5), st.booleans(), st.floats(1, 50), st.floats(1, 1e5))
def test_one_cycle(kind, anneal, total, pct, three_phase, div, final_div):
    if pct * total == 1 or (three_phase and 2 * pct * total - 2 >= total - 1):
        pct = 0.3  # where torch divides by zero
    options = {"div_factor": div, "final_div_factor": final_div, "three_phase": three_phase}
    schedule = ours.one_cycle(total, pct_start=pct, anneal=anneal, momentum=(0.7, 0.93), **options)

    def make(optimizer, base):
        momentum = {"base_momentum": 0.7, "max_momentum": 0.93}
        return theirs.OneCycleLR(optimizer, base, total, pct_start=pct, anneal_strategy=anneal, **momentum, **options)

    check(schedule, make, total, kind=kind)


def test_one_cycle_with_all_that_torch_defaults_to_and_all_groups_in_one_optimizer():
    wanted = curve_of_torch(lambda o: theirs.OneCycleLR(o, list(BASES), 200), 200, kind="adamw")
    found = curve_of_ours(ours.one_cycle(200), 200, kind="adamw")
    assert len(wanted) == 200
    for mine, torchs in zip(found, wanted, strict=True):
        assert mine == pytest.approx(torchs, rel=1e-12, abs=0)


FUNCTIONS = (lambda step: 0.98**step, lambda step: 1 / (1 + step), lambda step: 1 + math.sin(step))
FACTORS = (lambda step: 0.98, lambda step: 0.99 if step % 2 else 1.005, lambda step: 1 - 1 / (step + 2))


@pytest.mark.parametrize(
    ("schedule", "make"),
    [
        (ours.lambda_(90, functions=FUNCTIONS), lambda o: theirs.LambdaLR(o, FUNCTIONS)),
        (ours.lambda_(90, functions=FUNCTIONS[0]), lambda o: theirs.LambdaLR(o, FUNCTIONS[0])),
        (ours.multiplicative(90, functions=FACTORS), lambda o: theirs.MultiplicativeLR(o, FACTORS)),
        (ours.multiplicative(90, functions=FACTORS[1]), lambda o: theirs.MultiplicativeLR(o, FACTORS[1])),
    ],
    ids=["lambda-per-group", "lambda", "multiplicative-per-group", "multiplicative"],
)
def test_functions_of_your_own(schedule, make):
    found, wanted = curve_of_ours(schedule, 90), curve_of_torch(make, 90)
    assert [row for row in found if row[0] != row[1]] == found
    for mine, torchs in zip(found, wanted, strict=True):
        assert mine == pytest.approx(torchs, rel=1e-12, abs=0)


@pytest.mark.parametrize(("total", "warmup"), [(40, 10), (100, 5), (1000, 100)])
def test_linear_warmup_then_cosine(total, warmup):
    """Torch's two schedulers meet in the last step of the warmup, which is the first of the cosine."""

    def make(optimizer, base):
        rising = theirs.LinearLR(optimizer, 1 / warmup, total_iters=warmup - 1)
        falling = theirs.CosineAnnealingLR(optimizer, total - warmup, 0.01 * base)
        return theirs.SequentialLR(optimizer, [rising, falling], [warmup - 1])

    check(ours.with_warmup(ours.cosine, total, warmup_steps=warmup, min_fraction=0.01), make, total)


@pytest.mark.parametrize("start", [0.1, 1 / 3])
def test_constant_warmup_then_steps(start):
    def make(optimizer, _):
        pieces = [theirs.ConstantLR(optimizer, start, 1000), theirs.StepLR(optimizer, 20, 0.3)]
        return theirs.SequentialLR(optimizer, pieces, [15])

    schedule = ours.with_warmup(ours.step, 100, warmup_steps=15, shape="constant", start=start, every=20, gamma=0.3)
    check(schedule, make, 100)


@many
@given(st.integers(1, 60), st.integers(61, 120))
def test_sequential(first, second):
    total = 150

    def make(optimizer, base):
        pieces = [
            theirs.LinearLR(optimizer, 0.2, 0.9, first),
            theirs.CosineAnnealingWarmRestarts(optimizer, 7, 2, 0.1 * base),
            theirs.ExponentialLR(optimizer, 0.97),
        ]
        return theirs.SequentialLR(optimizer, pieces, [first, second])

    pieces = [
        partial(ours.linear, start_factor=0.2, min_fraction=0.9, length=first),
        lambda _: ours.cosine_restarts(total, period=7, multiplier=2, min_fraction=0.1),
        partial(ours.exponential, gamma=0.97, every=1),
    ]
    check(ours.sequential(total, pieces=pieces, milestones=[first, second]), make, total)


def test_chained():
    def make(optimizer, _):
        pieces = [
            theirs.ConstantLR(optimizer, 0.2, 30),
            theirs.ExponentialLR(optimizer, 0.98),
            theirs.MultiStepLR(optimizer, [40, 70]),
        ]
        return theirs.ChainedScheduler(pieces, optimizer)

    pieces = [
        partial(ours.constant, factor=0.2, length=30),
        partial(ours.exponential, gamma=0.98, every=1),
        partial(ours.multistep, milestones=[40, 70]),
    ]
    check(ours.chained(100, pieces=pieces), make, 100)


values = st.floats(-2, 2) | st.floats(0.5, 0.52) | st.sampled_from([0.0, math.nan])


@settings(max_examples=300, deadline=None)
@given(
    st.lists(values, max_size=60),
    st.sampled_from(["min", "max"]),
    st.sampled_from(["rel", "abs"]),
    st.integers(0, 4),
    st.integers(0, 4),
    st.sampled_from([0.0, 1e-4, 0.1]),
    st.sampled_from([0.0, 0.05]),
)
def test_plateau(metrics, mode, threshold_mode, patience, cooldown, threshold, low):
    base, reduce = 0.3, 0.3
    optimizer = optimizer_of("sgd", (base,))
    scheduler = theirs.ReduceLROnPlateau(
        optimizer, mode, reduce, patience, threshold, threshold_mode, cooldown, low * base, eps=0.0
    )
    plateau = ours.Plateau(
        reduce=reduce,
        patience=patience,
        threshold=threshold,
        threshold_mode=threshold_mode,
        cooldown=cooldown,
        min_fraction=low,
    )
    mine = optimizer_of("sgd", (base,))
    for metric in metrics:
        before = optimizer.param_groups[0]["lr"]
        scheduler.step(metric)
        fell = plateau.update(metric, higher_is_better=mode == "max")
        rate = set_rates(mine, 1.0, scale=plateau.factor)
        assert rate == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
        assert fell == (optimizer.param_groups[0]["lr"] < before)
