"""Labels that are probably wrong: against cleanlab, the reference, and against what was planted."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kiln.data.checks.label_errors import (
    class_thresholds,
    confident_classes,
    confident_joint,
    expected_errors,
    find_label_errors,
    normalized_margin,
    self_confidence,
)
from kiln.errors import UsageError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from cleanlab.count import compute_confident_joint
    from cleanlab.filter import find_label_issues
    from cleanlab.multilabel_classification import get_label_quality_scores as multilabel_quality
    from cleanlab.rank import get_label_quality_scores


def noisy(seed, *, n=600, num_classes=5, skill=2.5, noise=0.08):
    """Probabilities of a fair model, given labels of which some were changed, and true ones."""
    draw = np.random.default_rng(seed)
    true = draw.integers(num_classes, size=n)
    true[:num_classes] = np.arange(num_classes)
    logits = draw.normal(size=(n, num_classes)) + skill * np.eye(num_classes)[true]
    shift = np.where(draw.random(n) < noise, draw.integers(1, num_classes, size=n), 0)
    shift[:num_classes] = 0
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return probabilities, (true + shift) % num_classes, true


@pytest.mark.parametrize("seed", range(6))
def test_scores_are_cleanlabs(seed):
    probabilities, labels, _ = noisy(seed)
    for name, own in (("self_confidence", self_confidence), ("normalized_margin", normalized_margin)):
        theirs = get_label_quality_scores(labels, probabilities, method=name)
        np.testing.assert_allclose(own(probabilities, labels), theirs, atol=1e-12)
        assert np.array_equal(np.argsort(own(probabilities, labels)), np.argsort(theirs)), name


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("noise", [0.02, 0.1, 0.3])
def test_what_is_found_is_what_cleanlab_finds(seed, noise):
    probabilities, labels, true = noisy(seed, noise=noise)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = find_label_issues(
            labels,
            probabilities,
            filter_by="prune_by_class",
            return_indices_ranked_by="self_confidence",
            n_jobs=1,
        )
    ours = find_label_errors(probabilities, labels)
    both = set(ours.order.tolist()) & set(theirs.tolist())
    assert len(both) >= 0.9 * max(len(ours.order), len(theirs))
    shared = [index for index in ours.order.tolist() if index in both]
    assert shared == [index for index in theirs.tolist() if index in both]
    changed = labels != true
    assert changed[ours.order].mean() > min(3 * changed.mean(), 0.7)


@pytest.mark.parametrize("seed", range(4))
def test_the_joint_and_its_estimate(seed):
    probabilities, labels, true = noisy(seed, n=3000, skill=4.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = compute_confident_joint(labels, probabilities, calibrate=False)
    ours = confident_joint(probabilities, labels)
    assert np.abs(ours - theirs).sum() <= 0.02 * ours.sum()  # cleanlab takes 1 for an empty cell of the diagonal
    assert expected_errors(probabilities, labels).sum() == pytest.approx((labels != true).sum(), rel=0.25)
    assert find_label_errors(probabilities, labels).num_expected == expected_errors(probabilities, labels).sum()


def test_a_small_case_by_hand():
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.2, 0.8], [0.05, 0.95], [0.45, 0.55]])
    labels = np.array([0, 0, 1, 1, 0, 0])
    np.testing.assert_allclose(class_thresholds(probabilities, labels), [(0.9 + 0.8 + 0.05 + 0.45) / 4, 0.85])
    assert confident_classes(probabilities, labels).tolist() == [0, 0, 1, -1, 1, -1]
    assert confident_joint(probabilities, labels).tolist() == [[2, 1], [0, 1]]
    found = find_label_errors(probabilities, labels)
    assert found.order.tolist() == [4]  # the last is likelier of the other class too, but one is expected
    assert found.suggested[4].tolist() == [False, True]
    assert found.suggested[5].tolist() == [True, False]
    assert found.num_expected == pytest.approx(4 / 3)  # a third of the first class


def test_a_class_that_nobody_bears_is_never_suggested():
    found = find_label_errors(np.array([[0.1, 0.1, 0.8], [0.7, 0.2, 0.1], [0.1, 0.8, 0.1]]), np.array([0, 0, 1]))
    assert found.order.tolist() == []
    assert not found.suggested[:, 2].any()


@pytest.mark.parametrize("seed", range(4))
def test_labels_by_themselves(seed):
    draw = np.random.default_rng(seed)
    true = draw.random((400, 4)) < 0.4
    probabilities = 1 / (1 + np.exp(-(draw.normal(size=true.shape) + np.where(true, 2.5, -2.5))))
    changed = draw.random(true.shape) < 0.03
    given_labels = true ^ changed
    found = find_label_errors(probabilities, given_labels.astype(np.float32))
    theirs = multilabel_quality(
        [np.flatnonzero(row).tolist() for row in given_labels],
        probabilities,
        method="self_confidence",
        aggregator_kwargs={"method": np.min},
    )
    np.testing.assert_allclose(found.quality, theirs, atol=1e-12)
    flipped = found.suggested ^ given_labels
    assert flipped.any(axis=1).nonzero()[0].tolist() == sorted(found.order.tolist())
    assert changed[flipped].mean() > 0.5
    assert flipped[changed].mean() > 0.5


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), n=st.integers(1, 40), num_classes=st.integers(2, 6))
def test_laws(seed, n, num_classes):
    draw = np.random.default_rng(seed)
    probabilities = draw.dirichlet(np.ones(num_classes), size=n)
    labels = draw.integers(num_classes, size=n)
    found = find_label_errors(probabilities, labels)
    given_rows = labels[:, None] == np.arange(num_classes)
    differs = (found.suggested != given_rows).any(axis=1)
    assert (probabilities.argmax(axis=1) != labels)[found.order].all()
    assert sorted(found.order.tolist()) == np.flatnonzero(differs).tolist()
    assert (found.suggested.sum(axis=1) == 1).all()
    assert (np.diff(found.quality[found.order]) >= 0).all()
    assert 0 <= found.num_expected <= n
    order = draw.permutation(n)
    again = find_label_errors(probabilities[order], labels[order])
    np.testing.assert_array_equal(again.quality, found.quality[order])
    assert set(order[again.order].tolist()) == set(found.order.tolist())


def test_perfect_labels_are_not_suspected():
    probabilities = np.eye(3)[[0, 1, 2, 0]] * 0.97 + 0.01
    found = find_label_errors(probabilities, np.array([0, 1, 2, 0]))
    assert (len(found.order), found.num_expected) == (0, 0)


@pytest.mark.parametrize("shape", [(3,), (4, 3), (3, 2)])
def test_shapes_that_do_not_fit(shape):
    with pytest.raises(UsageError, match=r"probabilities of shape \(4, 2\) and targets of shape"):
        find_label_errors(np.full((4, 2), 0.5), np.zeros(shape, int))
