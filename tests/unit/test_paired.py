"""Differences of two models on the same samples: the test keeps its 5 %, the intervals their 95 %, groups are groups."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kiln import tasks
from kiln.measure.paired import (
    compare_shares,
    detectable_difference,
    grouped_interval,
    holm,
    mcnemar,
    score_interval,
    sign_flip,
)
from kiln.measure.paired_metrics import FROM_COUNTS, Answers, class_changes, compare_metrics
from kiln.measure.seeds import paired_by_seed, student_quantile, welch
from kiln.measure.side_by_side import FEWEST_ROUNDS, ROUNDS, speed_ratio, take_turns


def flips_by_hand(steps):
    """The mid-p of a sum over all ways to choose its signs."""
    sums = [sum(sign * abs(step) for sign, step in zip(signs, steps, strict=True)) for signs in all_signs(len(steps))]
    seen = abs(sum(steps))
    return (
        sum(abs(value) > seen for value in sums) / len(sums) + sum(abs(value) == seen for value in sums) / len(sums) / 2
    )


def all_signs(number):
    return itertools.product((-1, 1), repeat=number)


@given(st.lists(st.integers(-4, 4), min_size=1, max_size=9))
def test_sign_flip_is_the_count_over_all_signs(steps):
    expected = 1.0 if sum(steps) == 0 else flips_by_hand([step for step in steps if step])
    assert sign_flip(steps) == pytest.approx(expected, abs=1e-12)


@given(st.integers(0, 30), st.integers(0, 30))
def test_mcnemar_is_the_sign_flip_of_single_samples(first, second):
    assert mcnemar(first, second) == pytest.approx(sign_flip([-1] * first + [1] * second), abs=1e-12)
    assert mcnemar(first, second) == mcnemar(second, first)


def test_mcnemar_of_many_samples_does_not_run_dry():
    assert mcnemar(10_000, 10_000) == 1.0
    assert 0 < mcnemar(9_700, 10_300) < 1e-4
    assert mcnemar(0, 0) == 1.0


@pytest.mark.parametrize("n", [400, 5000])
@pytest.mark.parametrize("discordance", [0.05, 0.1, 0.2])
def test_equal_models_are_called_different_in_one_of_twenty(n, discordance):
    """4,000 pairs: the share of calls has a standard error of 0.35 points."""
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(n, [discordance / 2, discordance / 2, 1 - discordance], size=4000)
    called = np.mean([mcnemar(first, second) < 0.05 for first, second, _ in drawn.tolist()])
    assert 0.035 <= called <= 0.065
    low, high = score_interval(drawn[:, 0], drawn[:, 1], n)
    assert 0.935 <= np.mean((low <= 0) & (high >= 0)) <= 0.965


def test_three_points_are_found_and_covered():
    rng, n = np.random.default_rng(1), 5000
    drawn = rng.multinomial(n, [0.035, 0.065, 0.9], size=1000)
    assert np.mean([mcnemar(first, second) < 0.05 for first, second, _ in drawn.tolist()]) >= 0.95
    low, high = score_interval(drawn[:, 0], drawn[:, 1], n)
    assert 0.93 <= np.mean((low <= 0.03) & (high >= 0.03)) <= 0.97


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 200))
def test_the_interval_holds_the_difference_and_is_even(first, second, others):
    n = first + second + others
    if n == 0:
        return
    low, high = map(float, score_interval(first, second, n))
    assert -1 <= low <= (second - first) / n <= high <= 1
    turned = score_interval(second, first, n)
    assert (-float(turned[1]), -float(turned[0])) == pytest.approx((low, high), abs=1e-9)
    assert high > low


def test_the_interval_is_what_the_score_test_does_not_reject():
    """Its ends, put back into the score by a slow search for the most likely share."""
    first, second, n = 12, 30, 200
    for end in score_interval(first, second, n):
        shares = np.linspace(max(0, -end), (1 - end) / 2, 400_001)[1:-1]  # of the first alone; the second's is + end
        rest = n - first - second
        likelihood = first * np.log(shares) + second * np.log(shares + end) + rest * np.log(1 - 2 * shares - end)
        share = shares[np.argmax(likelihood)]
        score = (second - first - n * end) / math.sqrt(n * (2 * share + end - end**2))
        assert abs(score) == pytest.approx(1.96, abs=1e-3)


def test_groups_are_drawn_as_a_whole():
    """Models that differ by chance in whole groups: blind to groups, one pair in three is called different."""
    rng, groups = np.random.default_rng(2), np.repeat(np.arange(60), 10)
    called, blind, held = 0, 0, 0
    for _ in range(600):
        first, second = (rng.normal(size=60)[groups] + rng.normal(size=600) < 0.8 for _ in range(2))
        found = compare_shares(first, second, groups)
        called += found.p < 0.05
        held += found.low <= 0 <= found.high
        blind += compare_shares(first, second).p < 0.05
    assert found.num_groups == 60
    assert 0.03 <= called / 600 <= 0.07
    assert 0.93 <= held / 600 <= 0.975
    assert blind / 600 > 0.2


def test_what_was_counted():
    first = np.array([True, True, False, False, True])
    second = np.array([True, False, True, True, True])
    found = compare_shares(first, second)
    assert (found.value, found.n, found.only_first, found.only_second) == (pytest.approx(0.2), 5, 1, 2)
    assert found.num_groups is None
    same = compare_shares(first, first)
    assert (same.value, same.p) == (0.0, 1.0)
    assert same.low == pytest.approx(-same.high)
    assert grouped_interval([3], [4]) == (-1.0, 1.0)
    assert grouped_interval([0, 0, 0], [2, 2, 2])[1] > 0


def test_the_detectable_difference_is_found_in_four_of_five():
    rng, n, discordance = np.random.default_rng(3), 2000, 0.1
    gain = detectable_difference(discordance * n, n)
    assert gain == pytest.approx(0.02, abs=0.001)
    drawn = rng.multinomial(n, [(discordance - gain) / 2, (discordance + gain) / 2, 1 - discordance], size=2000)
    assert 0.76 <= np.mean([mcnemar(first, second) < 0.05 for first, second, _ in drawn.tolist()]) <= 0.86
    assert detectable_difference(0, 3) <= 1.0


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.04]) == [0.04]
    assert holm([]) == []


def test_seeds_by_hand():
    found = welch([0.80, 0.81, 0.82], [0.84, 0.85, 0.86])
    assert found.value == pytest.approx(0.04)
    assert found.degrees == pytest.approx(4)
    assert found.high - found.value == pytest.approx(2.7764451 * math.sqrt(2 * 0.0001 / 3), rel=1e-6)
    paired = paired_by_seed({0: 0.80, 1: 0.82, 2: 0.81}, {2: 0.85, 0: 0.84, 1: 0.86, 7: 0.1})
    assert paired is not None
    assert paired.value == pytest.approx(0.04)
    assert paired_by_seed({0: 0.8, 1: 0.8}, {0: 0.9, 1: 0.9, 2: 0.9}) is None
    assert (welch([0.5, 0.5], [0.5, 0.5]).p, welch([0.5, 0.5], [0.6, 0.6]).p) == (1.0, 0.0)
    assert student_quantile(4) == pytest.approx(2.7764451, abs=1e-6)


class Clock:
    """Time that passes only where work says so."""

    now = 0.0

    def __call__(self):
        return self.now


def test_turns_are_taken_and_alternate():
    clock, said = Clock(), []

    def work(name, seconds):
        def called():
            said.append(name)
            clock.now += seconds

        return called

    times = take_turns([work("a", 0.1), work("b", 0.3)], seconds=100, clock=clock)
    assert [len(rounds) for rounds in times] == [ROUNDS, ROUNDS]
    assert said[:8] == ["a", "a", "b", "b", "a", "b", "b", "a"]
    ratio = speed_ratio(*times)
    assert (ratio.value, ratio.low, ratio.high, ratio.num_rounds) == (*[pytest.approx(3)] * 3, ROUNDS)
    assert len(take_turns([work("a", 9.0)], seconds=1, clock=clock)[0]) == FEWEST_ROUNDS
    said.clear()
    quick = take_turns([work("quick", 0.004)], seconds=100, clock=clock)
    assert quick[0] == pytest.approx([0.004] * ROUNDS)
    assert len(said) == 2 + 5 * ROUNDS


# The other metrics


def two_models(task, num_classes, n, seed):
    """Logits of two models and targets, some classes without samples."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(2, n, num_classes)) * 2
    if task.name == "multilabel":
        return logits, (rng.random((n, num_classes)) < 0.3).astype(np.float32)
    return logits, rng.integers(0, num_classes - 1, n)


def answers_of(task, logits, targets):
    given_labels = task.given_labels(task.probabilities(logits))
    return Answers(given_labels, task.true_labels(targets, logits.shape[1]), task.sample_scores(logits, targets))


@pytest.mark.parametrize("name", ["classification", "multilabel"])
@pytest.mark.parametrize("seed", range(3))
def test_values_are_those_of_the_task(name, seed):
    task, classes = tasks.get(name), tuple("abcdefgh")
    logits, targets = two_models(task, 8, 90, seed)
    pair = [answers_of(task, one, targets) for one in logits]
    wanted = (*FROM_COUNTS, *pair[0].scores)
    metrics = [task.metrics(one, targets, classes, intervals=False, names="all") for one in logits]
    wanted = [metric for metric in wanted if metric in metrics[0]]
    assert {"f1_macro", "f1_micro", "loss", "brier"} <= set(wanted)
    found = compare_metrics(*pair, {metric: metrics[0][metric].higher_is_better for metric in wanted})
    assert list(found) == wanted
    for metric, row in found.items():
        assert row.first == pytest.approx(metrics[0][metric].value, abs=1e-12), metric
        assert row.second == pytest.approx(metrics[1][metric].value, abs=1e-12), metric
        assert row.low <= row.value <= row.high
    assert (pair[0].right == task.correct(task.probabilities(logits[0]), targets)).all()


@pytest.mark.parametrize("name", ["classification", "multilabel"])
@pytest.mark.parametrize("groups", [None, np.repeat(np.arange(40), 5)])
def test_resampling_agrees_with_a_slow_one(name, groups):
    """The interval against samples (or groups) drawn one resample at a time, scored by the task itself."""
    task, classes, n = tasks.get(name), tuple("abcd"), 200
    logits, targets = two_models(task, 4, n, 5)
    logits[1] = 0.6 * logits[0] + 0.4 * logits[1]
    pair = [answers_of(task, one, targets) for one in logits]
    found = compare_metrics(*pair, {"f1_macro": True, "loss": False}, groups=groups)
    rng, differences = np.random.default_rng(0), {"f1_macro": [], "loss": []}
    members = np.arange(n)[:, None] if groups is None else np.arange(n).reshape(40, 5)
    for _ in range(400):
        drawn = members[rng.integers(0, len(members), len(members))].reshape(-1)
        before, after = (task.metrics(one[drawn], targets[drawn], classes, intervals=False) for one in logits)
        for metric, values in differences.items():
            values.append(after[metric].value - before[metric].value)
    for metric, values in differences.items():
        low, high = np.quantile(values, [0.025, 0.975])
        width = high - low
        assert found[metric].low == pytest.approx(low, abs=0.15 * width), metric
        assert found[metric].high == pytest.approx(high, abs=0.15 * width), metric


def test_a_model_against_itself_differs_in_nothing():
    task = tasks.get("classification")
    logits, targets = two_models(task, 5, 60, 0)
    one = answers_of(task, logits[0], targets)
    for row in compare_metrics(one, one, {"f1_macro": True, "loss": False, "absent": True}).values():
        assert (row.value, row.low, row.high) == (0, 0, 0)
    changes = class_changes(one, one)
    assert [change.index for change in changes] == [0, 1, 2, 3]  # the fifth has no sample
    assert {change.p for change in changes} == {1.0}


@pytest.mark.parametrize("groups", [None, np.tile(np.arange(50), 4)])
def test_one_class_that_changed_is_named(groups):
    truth = np.eye(4, dtype=bool)[np.repeat(np.arange(4), 50)]
    first, second = truth.copy(), truth.copy()
    first[100:120] = [True, False, False, False]  # 20 of class 2 are taken for class 0
    changes = class_changes(Answers(first, truth, {}), Answers(second, truth, {}), groups)
    assert [change.support for change in changes] == [50] * 4
    assert [change.index for change in changes if change.p < 0.05] == [2]
    assert changes[2].value == pytest.approx(0.4)
    assert 0.2 < changes[2].low < 0.4 < changes[2].high < 0.6
    assert changes[2].p == pytest.approx(4 * 2.0**-20)
