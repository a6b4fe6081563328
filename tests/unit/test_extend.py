"""Training longer: a logged decision and one more piece of the map from step to rate, without a jump."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_training import make_state

from kiln.errors import UsageError
from kiln.jobs.training.extend import extended_schedule, extension
from kiln.metrics import Metric
from kiln.optim.schedules import constant, cosine, lambda_, one_cycle, with_warmup
from kiln.recipe.duration import Duration

EPOCH = 10


def entry(start, before, after):
    return {"step": start, "what": "extended", "from_steps": before, "to_steps": after}


def test_without_an_extension_nothing_changes():
    schedule = cosine(20)
    total, same = extended_schedule(schedule, 20, [{"step": 3, "what": "out_of_memory", "micro_batch_size": 4}])
    assert (total, same) == (20, schedule)


@settings(max_examples=300, deadline=None)
@given(st.integers(2, 60), st.integers(0, 10), st.integers(0, 80), st.integers(1, 60))
def test_the_rate_goes_on_from_where_it_was_and_ends_where_it_would_have(before, warmup, start, more):
    start = min(start, before)
    first = with_warmup(cosine, before, warmup_steps=min(warmup, before - 1), min_fraction=0.1)
    total, second = extended_schedule(first, before, [entry(start, before, before + more)])
    assert total == before + more
    assert [second(step) for step in range(start)] == [first(step) for step in range(start)]
    if start < before:
        assert second(start) == pytest.approx(first(start), abs=1e-12)
    rates = [second(step) for step in range(total)]
    assert all(0 < rate <= 1 for rate in rates)
    if total - start > 1 or start == before:
        assert rates[-1] == pytest.approx(first(before - 1), abs=1e-12)
    # Stretched: never steeper than the piece that it was made of, nor than the join to it.
    steepest = max((abs(b - a) for a, b in itertools.pairwise([first(step) for step in range(before)])), default=0.0)
    assert all(abs(b - a) <= steepest + 1e-12 for a, b in itertools.pairwise(rates))


def test_a_run_that_had_ended_goes_on_at_its_last_rate():
    total, schedule = extended_schedule(cosine(10, min_fraction=0.2), 10, [entry(10, 10, 15)])
    assert total == 15
    assert [schedule(step) for step in range(10, 15)] == [pytest.approx(0.2)] * 5


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=4), st.data())
def test_extensions_follow_one_another(pieces, data):
    log, total, start = [], 12, 0
    for more in pieces:
        start = data.draw(st.integers(start, total))
        log.append(entry(start, total, total + more))
        total += more
    found, schedule = extended_schedule(cosine(12, min_fraction=0.05), 12, log)
    assert found == total
    rates = [schedule(step) for step in range(total)]
    assert rates == [extended_schedule(cosine(12, min_fraction=0.05), 12, log)[1](step) for step in range(total)]
    assert all(b <= a + 1e-12 for a, b in itertools.pairwise(rates))
    assert all(math.isfinite(rate) and rate > 0 for rate in rates)


def test_an_extension_is_counted_from_the_length_that_the_run_has_by_now(tiny_model):
    state = make_state(tiny_model())
    state.step = 40
    state.log.append(entry(30, 100, 150))
    assert extension(state, Duration.parse("3ep"), 100, EPOCH) == entry(40, 150, 180)
    assert extension(state, Duration.parse("7steps"), 100, EPOCH) == entry(40, 150, 157)
    assert extension(state, Duration.parse("10%"), 100, EPOCH) == entry(40, 150, 165)


def test_a_run_that_had_stopped_early_gets_its_patience_back(tiny_model):
    state = make_state(tiny_model(), patience=2)
    for step, value in enumerate([0.5, 0.4, 0.3], start=1):
        state.tracker.update(Metric(value, None, None, 9), step)
    state.request_stop("early_stop")
    assert state.tracker.exhausted
    extension(state, Duration.parse("5ep"), 100, EPOCH)
    assert not state.tracker.exhausted
    assert state.stop_reason is None
    assert (state.tracker.best, state.tracker.best_step) == (0.5, 1)


def test_a_run_whose_patience_lasts_keeps_count(tiny_model):
    state = make_state(tiny_model(), patience=3)
    for step, value in enumerate([0.5, 0.4], start=1):
        state.tracker.update(Metric(value, None, None, 9), step)
    extension(state, Duration.parse("5ep"), 100, EPOCH)
    assert state.tracker.evaluations_since_improvement == 1


def test_time_on_the_clock_extends_nothing(tiny_model):
    with pytest.raises(UsageError, match="time on the clock is no number of steps"):
        extension(make_state(tiny_model()), Duration.parse("10m"), 100, EPOCH)


def test_a_constant_schedule_stays_constant():
    _, schedule = extended_schedule(constant(10), 10, [entry(4, 10, 30)])
    assert {schedule(step) for step in range(30)} == {1.0}


def test_momentum_and_groups_are_stretched_along():
    first = one_cycle(20)
    _, longer = extended_schedule(first, 20, [entry(5, 20, 41)])
    assert [longer(step) for step in range(5)] == [first(step) for step in range(5)]
    assert longer(5) == first(5)
    assert longer(40) == pytest.approx(first(19))
    momenta = [longer(step).momentum for step in range(6, 41)]
    assert momenta == sorted(momenta)  # on the way down it rises again
    _, of_groups = extended_schedule(lambda_(4, functions=[lambda s: 1.0, lambda s: s / 4]), 4, [entry(0, 4, 7)])
    assert [of_groups(step).lr for step in (0, 1, 6)] == [(1.0, 0.0), (1.0, 0.125), (1.0, 0.75)]


def test_a_run_that_had_ended_at_rate_zero_cannot_go_on():
    with pytest.raises(UsageError, match="ended at a learning rate of 0"):
        extended_schedule(cosine(10), 10, [entry(10, 10, 15)])
    extended_schedule(cosine(10), 10, [entry(9, 10, 15)])
