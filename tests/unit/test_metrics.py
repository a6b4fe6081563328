"""Metrics on hand-made data: exact values, ties, absent classes, and what cannot be measured."""

import numpy as np
import pytest

from kiln.errors import DataError, NumericError
from kiln.metrics import Metric, classification, counts, multilabel, ranking
from kiln.tasks import get

TARGETS = np.array([0, 0, 0, 1, 1, 2])
PREDICTIONS = np.array([0, 0, 1, 1, 3, 0])
CONFUSION = classification.confusion_matrix(TARGETS, PREDICTIONS, 5)


def test_rows_are_the_truth_and_columns_what_was_said():
    assert CONFUSION.tolist() == [[2, 1, 0, 0, 0], [0, 1, 0, 1, 0], [1, 0, 0, 0, 0], [0] * 5, [0] * 5]
    assert CONFUSION.dtype == np.int64
    assert classification.accuracy(CONFUSION) == 0.5


def test_per_class_shares_are_zero_where_there_is_no_denominator():
    precision, recall, f1 = classification.precision_recall_f1(CONFUSION)
    np.testing.assert_allclose(precision, [2 / 3, 1 / 2, 0, 0, 0], atol=1e-15)
    np.testing.assert_allclose(recall, [2 / 3, 1 / 2, 0, 0, 0], atol=1e-15)
    np.testing.assert_allclose(f1, [2 / 3, 1 / 2, 0, 0, 0], atol=1e-15)


def test_means_leave_out_what_does_not_occur():
    # Class 3 was only predicted: it counts for F1, not for the recall. Class 4 does not occur: it counts for neither.
    assert classification.balanced_accuracy(CONFUSION) == pytest.approx((2 / 3 + 1 / 2 + 0) / 3, abs=1e-15)
    assert classification.f1_macro(CONFUSION) == pytest.approx((2 / 3 + 1 / 2 + 0 + 0) / 4, abs=1e-15)


def test_equal_scores_rank_by_class_index():
    scores = np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    assert classification.ranks(scores, np.array([0, 1, 2])).tolist() == [0, 1, 2]
    assert ((classification.ranks(scores, np.array([0, 1, 2])) < 1) == (scores.argmax(1) == [0, 1, 2])).all()


def test_log_losses_are_exact_where_probabilities_round_to_zero():
    losses = classification.log_losses([[1e4, -1e4], [0.0, 0.0], [-800.0, 0.0]], [1, 0, 0])
    np.testing.assert_allclose(losses, [2e4, np.log(2), 800.0], rtol=1e-15)
    np.testing.assert_allclose(multilabel.binary_log_losses([[800.0, 0.0]], [[0, 1]]), [400 + np.log(2) / 2])


def test_probabilities_survive_extreme_logits():
    np.testing.assert_allclose(classification.softmax([[1e4, -1e4, 1e4]]), [[0.5, 0.0, 0.5]])
    np.testing.assert_allclose(multilabel.sigmoid([-1e4, 0.0, 1e4]), [0.0, 0.5, 1.0])
    assert classification.softmax(np.float32([[1, 2]])).dtype == np.float64


def test_what_cannot_be_measured_says_so():
    with pytest.raises(DataError, match="no samples to evaluate"):
        classification.check_finite(np.zeros((0, 3)))
    logits = np.zeros((4, 3))
    logits[2, 1], logits[3, 0] = np.nan, np.inf
    with pytest.raises(NumericError, match=r"not finite for 2 of 4 samples\n  where: first at sample 2") as caught:
        classification.check_finite(logits)
    assert caught.value.code == "E602"


LABELS = np.array([[1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 0, 0]])
SAID = np.array([[1, 0, 0, 0], [0, 0, 0, 0], [1, 0, 1, 0]])


def test_multilabel_counts():
    assert multilabel.exact_matches(LABELS, SAID).tolist() == [False, True, False]
    assert multilabel.label_shares(LABELS, SAID).tolist() == [0.75, 1.0, 0.5]
    told = counts.Counts(*multilabel.label_counts(LABELS, SAID))
    hits, predicted, actual = told
    assert (hits.tolist(), predicted.tolist(), actual.tolist()) == ([2, 0, 0, 0], [2, 0, 1, 0], [2, 1, 1, 0])
    assert counts.f_beta(told, average="micro") == pytest.approx(2 * 2 / (3 + 4))
    assert counts.f_beta(told) == pytest.approx((1 + 0 + 0) / 3)  # the last label never occurs


def test_average_precision_by_hand():
    truth = np.array([[1], [0], [1], [0]])
    scores = np.array([[0.9], [0.8], [0.7], [0.1]])
    np.testing.assert_allclose(ranking.average_precisions(truth == 1, scores), [0.5 * 1 + 0.5 * 2 / 3])
    np.testing.assert_allclose(ranking.average_precisions(truth == 1, np.zeros((4, 1))), [0.5])


def test_labels_without_truth_have_no_average_precision():
    values = ranking.average_precisions(LABELS == 1, SAID)
    assert np.isnan(values).tolist() == [False, False, False, True]
    assert ranking.mean_known(values) == pytest.approx(np.nanmean(values))
    nothing = get("multilabel").metrics(np.zeros((3, 2)), np.zeros((3, 2)), ("a", "b"))["mean_average_precision"]
    assert (nothing.value, nothing.low, nothing.high) == (0.0, 0.0, 1.0)


def test_a_metric_reads_as_a_sentence_and_knows_its_direction():
    accuracy = Metric(0.9, 0.85, 0.95, 100)
    assert str(accuracy) == "0.9000 (95 % 0.8500 to 0.9500, n=100)"
    assert str(Metric(0.9, None, None, 100)) == "0.9000 (n=100)"
    assert accuracy.better_than(Metric(0.8, None, None, 100))
    assert not accuracy.better_than(accuracy)
    loss = Metric(0.3, None, None, 100, higher_is_better=False)
    assert loss.better_than(Metric(0.4, None, None, 100, higher_is_better=False))
    assert not Metric(float("nan"), None, None, 1).better_than(accuracy)
