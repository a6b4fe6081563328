"""Metrics against scikit-learn, to 1e-9: random, tied, absent-class and one-class data."""

import warnings

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn

from kiln.metrics import classification, counts, multilabel, ranking

TOLERANCE = {"rtol": 0, "atol": 1e-9}
many = settings(max_examples=150, deadline=None)


@st.composite
def predictions(draw):
    """Scores with few distinct values (so with ties) and targets that leave classes out, down to one class only."""
    num_classes = draw(st.integers(2, 8))
    n = draw(st.integers(1, 60))
    present = draw(st.lists(st.integers(0, num_classes - 1), min_size=1, max_size=num_classes, unique=True))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    targets = generator.choice(present, n)
    scores = generator.normal(size=(n, num_classes)) * draw(st.sampled_from([0.0, 1.0, 5.0]))
    if draw(st.booleans()):
        scores = np.round(scores)
    return targets, scores, num_classes


@st.composite
def label_sets(draw):
    num_labels, n = draw(st.integers(2, 7)), draw(st.integers(2, 50))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    frequency = generator.choice([0.0, 0.1, 0.5, 1.0], num_labels)
    targets = (generator.random((n, num_labels)) < frequency).astype(np.int64)
    scores = generator.normal(size=(n, num_labels)) + draw(st.sampled_from([0.0, 2.0])) * targets
    return targets, np.round(scores, draw(st.sampled_from([0, 8])))


@many
@given(predictions())
def test_counts_and_shares(sample):
    targets, scores, num_classes = sample
    said = scores.argmax(axis=1)
    confusion = classification.confusion_matrix(targets, said, num_classes)
    labels = range(num_classes)
    assert np.array_equal(confusion, sklearn.confusion_matrix(targets, said, labels=labels))
    np.testing.assert_allclose(classification.accuracy(confusion), sklearn.accuracy_score(targets, said), **TOLERANCE)
    *ours, support = *classification.precision_recall_f1(confusion), confusion.sum(axis=1)
    theirs = sklearn.precision_recall_fscore_support(targets, said, labels=labels, zero_division=0)
    for mine, reference in zip((*ours, support), theirs, strict=True):
        np.testing.assert_allclose(mine, reference, **TOLERANCE)
    reference = sklearn.f1_score(targets, said, average="macro", zero_division=0)
    np.testing.assert_allclose(classification.f1_macro(confusion), reference, **TOLERANCE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "y_pred contains classes not in y_true": that is what is tested
        reference = sklearn.balanced_accuracy_score(targets, said)
    np.testing.assert_allclose(classification.balanced_accuracy(confusion), reference, **TOLERANCE)


@many
@given(predictions(), st.integers(1, 8))
def test_top_k(sample, k):
    targets, scores, num_classes = sample
    k = min(k, num_classes)
    ours = (classification.ranks(scores, targets) < k).mean()
    # scikit-learn ranks equal scores from the last class down, we (as argmax) from the first up: turn them round.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # k = K is "always 1"
        if num_classes > 2:
            reference = sklearn.top_k_accuracy_score(
                num_classes - 1 - targets, scores[:, ::-1], k=k, labels=range(num_classes)
            )
        else:
            reference = 1.0 if k == 2 else (scores.argmax(axis=1) == targets).mean()
    np.testing.assert_allclose(ours, reference, **TOLERANCE)
    top1 = (classification.ranks(scores, targets) < 1).mean()
    assert top1 == (scores.argmax(axis=1) == targets).mean()


@many
@given(predictions())
def test_log_loss(sample):
    targets, scores, num_classes = sample
    reference = sklearn.log_loss(targets, classification.softmax(scores), labels=range(num_classes))
    np.testing.assert_allclose(classification.log_losses(scores, targets).mean(), reference, **TOLERANCE)


@many
@given(label_sets())
def test_multilabel(sample):
    targets, scores = sample
    said = (scores >= 0).astype(np.int64)
    told = counts.Counts(*multilabel.label_counts(targets, said))
    ours = multilabel.exact_matches(targets, said).mean()
    np.testing.assert_allclose(ours, sklearn.accuracy_score(targets, said), **TOLERANCE)
    ours = multilabel.label_shares(targets, said).mean()
    np.testing.assert_allclose(ours, 1 - sklearn.hamming_loss(targets, said), **TOLERANCE)
    ours = counts.f_beta(told, average="micro")
    np.testing.assert_allclose(ours, sklearn.f1_score(targets, said, average="micro", zero_division=0), **TOLERANCE)
    occurring = np.flatnonzero((targets + said).any(axis=0))
    reference = 0.0
    if len(occurring):
        reference = sklearn.f1_score(targets, said, labels=occurring, average="macro", zero_division=0)
    np.testing.assert_allclose(counts.f_beta(told), reference, **TOLERANCE)


@many
@given(label_sets())
def test_average_precision(sample):
    targets, scores = sample
    ours = ranking.average_precisions(targets == 1, scores)
    for label, value in enumerate(ours):
        if not targets[:, label].any():
            assert np.isnan(value)
            continue
        reference = sklearn.average_precision_score(targets[:, label], scores[:, label])
        np.testing.assert_allclose(value, reference, **TOLERANCE)


@many
@given(predictions(), st.data())
def test_every_sample_counts_once_however_they_are_cut(sample, data):
    targets, scores, num_classes = sample
    cut = data.draw(st.integers(0, len(targets)))
    said = scores.argmax(axis=1)
    parts = [classification.confusion_matrix(targets[p], said[p], num_classes) for p in (slice(cut), slice(cut, None))]
    assert np.array_equal(sum(parts), classification.confusion_matrix(targets, said, num_classes))
