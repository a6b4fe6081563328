"""Intervals: closed forms against published values, the bootstrap against a slow obvious one, and true coverage."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kiln.metrics import bootstrap, bootstrap_mean, classification, counts, ranking, wilson
from kiln.metrics.intervals import bounded, jackknife, percentiles, resample_samples
from kiln.metrics.measures import How
from kiln.tasks import class_metrics, label_metrics


def test_wilson_against_published_values():
    # Newcombe 1998, Statistics in Medicine 17, table I, method 3.
    table = {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0.0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }
    for (successes, n), expected in table.items():
        np.testing.assert_allclose(wilson(successes, n), expected, atol=5e-5)


@given(st.integers(0, 10**7), st.integers(0, 10**7))
def test_wilson_holds_the_share_and_stays_in_range(a, b):
    successes, n = min(a, b), max(a, b)
    low, high = wilson(successes, n)
    assert 0.0 <= low <= (successes / n if n else 0.5) <= high <= 1.0


def test_wilson_takes_arrays_and_knows_nothing_of_nothing():
    low, high = wilson([0, 5, 10, 0], [10, 10, 10, 0])
    np.testing.assert_allclose(low + high[::-1][[1, 2, 3, 0]], [1, 1, 1, 1])  # mirrored
    assert (low[3], high[3]) == (0.0, 1.0)


def coverage(interval, truth, repeats=400):
    hits = sum(low <= truth <= high for low, high in (interval(i) for i in range(repeats)))
    return hits / repeats


def test_intervals_of_shares_hold_the_truth_95_times_in_100():
    draws = np.random.default_rng(0)
    held = coverage(lambda _: wilson(draws.binomial(50, 0.9), 50), 0.9)
    assert 0.92 <= held <= 0.995


def test_balanced_accuracy_holds_the_truth_95_times_in_100_also_where_classes_are_small():
    draws, classes = np.random.default_rng(2), tuple("abcdefghij")
    recalls = np.linspace(0.9, 1.0, 10)

    def interval(_):
        targets = np.repeat(np.arange(10), 10)
        right = draws.random(100) < recalls[targets]
        logits = np.eye(10)[np.where(right, targets, (targets + 1) % 10)]
        found = class_metrics.TABLE["balanced_accuracy"](class_metrics.ClassAnswers(logits, targets, classes), How())
        return found.low, found.high

    assert 0.92 <= coverage(interval, recalls.mean()) <= 0.98


def test_perfect_recalls_still_have_a_width():
    targets = np.repeat(np.arange(3), 5)
    answers = class_metrics.ClassAnswers(np.eye(3)[targets], targets, ("a", "b", "c"))
    found = class_metrics.TABLE["balanced_accuracy"](answers, How())
    assert found.high == 1.0
    assert 0.7 < found.low < 0.9


def f1_bootstrap(confusion, seed=0):
    units, times = counts.cells(confusion)
    return percentiles(counts.resample_counts(units, times, [counts.f_beta], seed=seed)[:, 0])


def test_bootstrap_of_f1_holds_the_truth_95_times_in_100():
    draws = np.random.default_rng(1)
    support = np.array([60, 100, 140])
    rows = np.array([[0.8, 0.15, 0.05], [0.1, 0.7, 0.2], [0.05, 0.05, 0.9]])
    truth = classification.f1_macro(np.round(support[:, None] * rows * 1000).astype(np.int64))

    def interval(seed):
        return f1_bootstrap(draws.multinomial(support, rows), seed=seed)

    assert 0.90 <= coverage(interval, truth, repeats=250) <= 0.99


def slow_bootstrap(values, statistic, strata, num_resamples=1000):
    draws = np.random.default_rng(2)
    members = [np.flatnonzero(strata == stratum) for stratum in np.unique(strata)]
    found = []
    for _ in range(num_resamples):
        picked = np.concatenate([draws.choice(rows, len(rows)) for rows in members])
        found.append(statistic(picked))
    return np.quantile(found, [0.025, 0.975])


def test_f1_interval_against_resampling_every_prediction():
    draws = np.random.default_rng(3)
    targets = draws.integers(0, 4, 400)
    predictions = np.where(draws.random(400) < 0.7, targets, draws.integers(0, 5, 400))  # class 4 is only predicted

    def f1(rows):
        return classification.f1_macro(classification.confusion_matrix(targets[rows], predictions[rows], 6))

    confusion = classification.confusion_matrix(targets, predictions, 6)
    fast = f1_bootstrap(confusion)
    slow = slow_bootstrap(targets, f1, np.zeros(400))
    np.testing.assert_allclose(fast, slow, atol=0.15 * (slow[1] - slow[0]))


def test_resampled_counts_are_those_of_the_resampled_table(monkeypatch):
    confusion = np.array([[3, 1, 0], [0, 0, 2], [0, 0, 0]])
    tables = np.array(
        [[[2, 2, 0], [0, 0, 2], [0, 0, 0]], [[4, 0, 0], [0, 0, 2], [0, 0, 0]], [[0, 5, 0], [0, 0, 1], [0, 0, 0]]]
    )

    def resample(times, values, *, seed):
        assert times.tolist() == [3, 1, 2]
        return values(np.array([[table[cell] for cell in [(0, 0), (0, 1), (1, 2)]] for table in tables]))

    monkeypatch.setattr(counts, "resample", resample)
    functions = [counts.accuracy, counts.f_beta, counts.matthews]
    values = counts.resample_counts(*counts.cells(confusion), functions)
    expected = [[function(counts.of_confusion(table)) for function in functions] for table in tables]
    np.testing.assert_allclose(values, expected, atol=1e-15)


def label_data(draws, n=300, share=(0.5, 0.3, 0.2, 0.1, 0.0), *, shift=1.5, digits=1):
    """Truth and scores of labels, with ties and a label that nobody has."""
    truth = draws.random((n, len(share))) < share
    return truth, (draws.normal(size=truth.shape) + shift * truth - 0.7).round(digits)


def slow_jackknife(n, statistic):
    """Leave out one thing at a time, the plain way: `statistic(rows)`."""
    every = np.arange(n)
    without = [statistic(np.delete(every, i)) for i in every]
    return jackknife(np.ones(n), without, statistic(every))


def precision_of(truth, scores):
    return lambda rows: ranking.mean_known(ranking.average_precisions(truth[rows], scores[rows]))


def test_average_precision_leaves_out_every_sample_as_a_slow_jackknife_does():
    draws = np.random.default_rng(4)
    for n in (2, 7, 60):
        truth, scores = label_data(draws, n)
        truth[0, 0] = True
        slow = slow_jackknife(n, precision_of(truth, scores))
        np.testing.assert_allclose(ranking.mean_average_precision_interval(truth, scores), slow, rtol=1e-12)


def test_average_precision_leaves_out_whole_groups():
    truth, scores = label_data(np.random.default_rng(5), 60)
    groups = np.arange(60) % 20
    of_samples = precision_of(truth, scores)
    slow = slow_jackknife(20, lambda kept: of_samples(np.isin(groups, kept)))
    fast = ranking.mean_average_precision_interval(truth, scores, groups=groups)
    np.testing.assert_allclose(fast, slow, rtol=1e-12)
    alone = ranking.mean_average_precision_interval(truth, scores, groups=np.arange(60))
    np.testing.assert_allclose(alone, ranking.mean_average_precision_interval(truth, scores), rtol=1e-12)


def test_many_groups_are_left_out_several_at_a_time():
    truth, scores = label_data(np.random.default_rng(6), 1000)
    (low, high), blocks = (
        ranking.mean_average_precision_interval(truth, scores, groups=groups) for groups in (None, np.arange(1000))
    )
    np.testing.assert_allclose(blocks, (low, high), atol=0.2 * (high - low))


def test_average_precision_without_truth_has_no_interval():
    nothing = np.zeros((5, 2), bool)
    assert np.isnan(ranking.mean_average_precision_interval(nothing, np.ones((5, 2)))).all()


def test_intervals_of_labels_hold_the_truth():
    draws = np.random.default_rng(7)
    share = (0.3, 0.1, 0.1)

    def answers(n):
        truth, scores = label_data(draws, n, share, shift=2.5, digits=9)
        return label_metrics.LabelAnswers(scores, truth, ("a", "b", "c"))

    names = ("f1_macro", "f1_micro", "mean_average_precision")
    whole = answers(200_000)
    truth = {name: label_metrics.TABLE[name](whole, How(intervals=False)).value for name in names}
    held = dict.fromkeys(names, 0)
    for _ in range(300):
        few = answers(100)
        for name in names:
            found = label_metrics.TABLE[name](few, How())
            held[name] += found.low <= truth[name] <= found.high
    assert all(0.91 <= count / 300 <= 0.985 for count in held.values()), held


def test_bootstrap_mean_against_theory_and_the_general_form():
    values = np.random.default_rng(5).exponential(size=2000)
    half = 1.96 * values.std() / np.sqrt(len(values))
    for low, high in (
        bootstrap_mean(values),
        bootstrap(np.ones(len(values)), lambda drawn: drawn @ values / len(values), num_resamples=400),
    ):
        np.testing.assert_allclose([low, high], [values.mean() - half, values.mean() + half], atol=0.15 * half)


def test_groups_are_drawn_whole():
    # 20 groups of 50 equal samples hold no more than 20 samples would: a cell per group says so.
    draws = np.random.default_rng(6)
    shares = draws.integers(0, 2, 20).astype(float)
    by_sample = bootstrap_mean(np.repeat(shares, 50))
    by_group = bootstrap(np.ones(20), lambda drawn: drawn @ (shares * 50) / (drawn.sum(axis=1) * 50))
    assert (by_group[1] - by_group[0]) > 5 * (by_sample[1] - by_sample[0])


def test_strata_keep_their_sizes():
    strata = np.array([0, 0, 1, 1, 1, 7])
    counts = np.array([3, 4, 1, 0, 5, 2])

    def statistic(drawn):
        assert (drawn[:, :2].sum(axis=1) == 7).all()
        assert (drawn[:, 2:5].sum(axis=1) == 6).all()
        assert (drawn[:, 3] == 0).all()
        assert (drawn[:, 5] == 2).all()
        return drawn[:, 0].astype(float)

    low, high = bootstrap(counts, statistic, strata=strata)
    assert 0 <= low < 3 < high <= 7


@settings(max_examples=25, deadline=None)
@given(st.integers(-(2**40), 2**64), st.integers(1, 50))
def test_one_seed_one_interval(seed, n):
    values = np.linspace(0, 1, n) ** 2
    assert bootstrap_mean(values, seed=seed, num_resamples=50) == bootstrap_mean(values, seed=seed, num_resamples=50)
    if n > 3:
        other = bootstrap_mean(values, seed=seed + 1, num_resamples=50)
        assert bootstrap_mean(values, seed=seed, num_resamples=50) != other


def test_chunks_do_not_repeat_each_other(monkeypatch):
    values = np.arange(1000.0)
    seen = []
    monkeypatch.setattr("kiln.metrics.intervals._CHUNK_CELLS", 1000 * 10)
    bootstrap(np.ones(1000), lambda drawn: seen.append(drawn @ values) or seen[-1], num_resamples=95)
    assert [len(part) for part in seen] == [10] * 9 + [5]
    assert len(np.unique(np.concatenate(seen))) == 95


def test_a_thousand_resamples_of_ten_thousand_predictions():
    draws = np.random.default_rng(7)
    targets = draws.integers(0, 100, 10_000)
    predictions = np.where(draws.random(10_000) < 0.6, targets, draws.integers(0, 100, 10_000))
    confusion = classification.confusion_matrix(targets, predictions, 100)
    start = time.perf_counter()
    low, high = f1_bootstrap(confusion)
    assert time.perf_counter() - start < 20  # a hang guard; the measured time is a tenth of a second
    assert low < classification.f1_macro(confusion) < high


@pytest.mark.parametrize("n", [1, 2])
def test_the_smallest_data(n):
    assert bootstrap_mean(np.full(n, 3.0)) == (3.0, 3.0)
    assert bootstrap(np.array([n]), lambda drawn: drawn[:, 0] / n) == (1.0, 1.0)


# The jackknife, and intervals from a variance


def leave_one_out(confusion, statistic):
    """The jackknife the slow way: a table for each sample that is left out."""
    values = []
    for cell in np.argwhere(confusion):
        table = confusion.copy()
        table[tuple(cell)] -= 1
        values += [float(statistic(counts.of_confusion(table)))] * confusion[tuple(cell)]
    return np.array(values)


@pytest.mark.parametrize("statistic", [counts.f_beta, counts.precision, counts.recall, counts.matthews])
def test_the_jackknife_leaves_out_each_sample_once(statistic):
    confusion = np.random.default_rng(8).multinomial(60, np.full(16, 1 / 16)).reshape(4, 4)
    whole, (units, times) = counts.of_confusion(confusion), counts.cells(confusion)
    without = statistic(counts.without_one(whole, units))
    np.testing.assert_allclose(np.repeat(without, times), leave_one_out(confusion, statistic), atol=1e-15)
    value, least = float(statistic(whole)), -1.0 if statistic is counts.matthews else 0.0
    low, high = jackknife(times, without, value, least=least)
    spread = np.sqrt(59 / 60 * 60 * np.var(np.repeat(without, times)))
    assert low < value < high
    assert (high - low) == pytest.approx(2 * 1.96 * spread, rel=0.1)


def test_the_jackknife_of_a_share_is_wilsons_interval():
    low, high = jackknife([70, 30], [69 / 99, 70 / 99], 0.7)
    np.testing.assert_allclose((low, high), wilson(70, 100), atol=0.002)


def test_all_right_is_no_certainty():
    confusion = np.diag([5, 5, 5])
    units, times = counts.cells(confusion)
    low, high = jackknife(times, counts.f_beta(counts.without_one(counts.of_confusion(confusion), units)), 1.0)
    np.testing.assert_allclose((low, high), wilson(15, 15))
    assert jackknife([1], [0.0], 1.0) == bounded(1.0, 0.0, n=1)


def test_the_jackknife_holds_macro_f1_of_few_samples_95_times_in_100():
    draws = np.random.default_rng(9)
    table = np.full((10, 10), 0.2 / 90)
    np.fill_diagonal(table, 0.08)
    truth = float(counts.f_beta(counts.of_confusion(table)))

    def interval(_):
        confusion = draws.multinomial(100, table.ravel()).reshape(10, 10)
        whole, (units, times) = counts.of_confusion(confusion), counts.cells(confusion)
        return jackknife(times, counts.f_beta(counts.without_one(whole, units)), float(counts.f_beta(whole)))

    assert 0.92 <= coverage(interval, truth, repeats=600) <= 0.98


def test_bounded_reaches_no_further_than_its_bounds():
    assert bounded(0.5, 10.0, n=3) == pytest.approx((0.0, 1.0), abs=0.01)
    low, high = bounded(-0.9, 0.01, n=50, least=-1.0)
    assert -1.0 <= low < -0.9 < high < 0


def test_drawn_samples_keep_the_sizes_of_strata():
    strata = np.array([2, 0, 1, 0, 2, 2, 5, 0])

    def statistic(drawn):
        for stratum, size in ((0, 3), (1, 1), (2, 3), (5, 1)):
            assert (drawn[:, strata == stratum].sum(axis=1) == size).all()
        return drawn.astype(float)

    drawn = resample_samples(8, statistic, strata=strata, num_resamples=4000)
    np.testing.assert_allclose(drawn.mean(axis=0), 1, atol=0.05)
    np.testing.assert_allclose(drawn[:, 1].var(), 3 * (1 / 3) * (2 / 3), rtol=0.1)
    drawn = resample_samples(8, lambda drawn: drawn.astype(float), num_resamples=4000)
    np.testing.assert_allclose(drawn.var(axis=0), 7 / 8, rtol=0.15)


def test_percentiles_leave_out_resamples_without_a_value():
    assert percentiles(np.array([np.nan, *np.linspace(0, 1, 41)])) == pytest.approx((0.025, 0.975))
    assert np.isnan(percentiles(np.array([np.nan]))).all()
