"""Calibration and refusal: fitted values against known truth, and against an independent optimiser."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import optimize, special

from kiln.errors import ArtifactError, DataError, UsageError
from kiln.jobs.calibrate import Wanted, fit_decision
from kiln.metrics import wilson
from kiln.metrics.calibration import (
    LEAST_SAMPLES,
    fit_sigmoid,
    fit_softmax,
    threshold_for_accuracy,
    threshold_for_coverage,
)
from kiln.tasks import get
from kiln.tasks.decision import Decision, generalized_entropy


def drawn(n=4000, classes=5, *, seed=0):
    """Logits of a model that knows its chances, and targets drawn from them."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, classes)) * 2
    chances = special.softmax(logits, axis=1)
    targets = (chances.cumsum(1) > rng.random((n, 1))).argmax(1)
    return logits, targets


def log_loss(logits, targets):
    return -special.log_softmax(logits, axis=1)[np.arange(len(targets)), targets].mean()


@pytest.mark.parametrize("factor", [0.3, 1.0, 4.0])
def test_a_temperature_is_found_again(factor):
    logits, targets = drawn()
    fit = fit_softmax(logits * factor, targets)
    scale = fit.scale[0] if fit.scale else 1.0  # near 1 a fit may not help, and is left out
    assert scale == pytest.approx(1 / factor, rel=0.05)


def test_a_temperature_is_the_minimum_of_the_log_loss():
    logits, targets = drawn(n=20_000)
    fit = fit_softmax(logits * 3, targets)
    best = optimize.minimize_scalar(lambda s: log_loss(logits * 3 * s, targets), bounds=(0.01, 10), method="bounded")
    assert fit.scale[0] == pytest.approx(best.x, rel=2e-3)  # smoothing moves it by about 1 / n
    assert fit.loss_before == pytest.approx(log_loss(logits * 3, targets))
    assert fit.loss_after < fit.loss_before


def test_a_temperature_changes_no_prediction():
    logits, targets = drawn(n=500)
    decision = Decision(scale=fit_softmax(logits * 5, targets).scale)
    assert decision.scale
    assert (decision.calibrated(logits * 5).argmax(1) == (logits * 5).argmax(1)).all()


def test_a_vector_corrects_each_class():
    logits, targets = drawn(n=4000)
    factors, shifts = np.linspace(0.5, 3, 5), np.linspace(-1, 1, 5)
    wrong = (logits - shifts) / factors
    one = fit_softmax(wrong, targets)
    each = fit_softmax(wrong, targets, method="vector")
    found = Decision(scale=each.scale, bias=each.bias).calibrated(wrong)
    assert each.loss_after < one.loss_after
    assert log_loss(found, targets) == pytest.approx(log_loss(logits, targets), abs=0.01)
    assert np.array(each.scale) == pytest.approx(factors, rel=0.15)


def test_labels_are_calibrated_too():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4000, 3)) * 2
    targets = (special.expit(logits) > rng.random(logits.shape)).astype(np.float32)
    assert fit_sigmoid(logits * 4, targets).scale[0] == pytest.approx(0.25, rel=0.05)


def test_a_model_that_is_never_wrong_does_not_become_infinitely_sure():
    logits, _ = drawn(n=300)
    fit = fit_softmax(logits, logits.argmax(1))
    sure = special.softmax(logits * fit.scale[0], axis=1).max(1)
    assert 0.9 < sure.mean() < 1 - 1 / 2000


def test_what_does_not_help_is_left_out():
    few, targets = drawn(n=LEAST_SAMPLES - 1)
    assert fit_softmax(few * 5, targets).method == "none"
    assert fit_softmax(*drawn(n=100), method="none").scale == ()
    kept = [fit_softmax(*drawn(n=60, seed=seed), method="vector").method for seed in range(8)]
    assert "none" in kept  # 10 numbers from 60 samples of a calibrated model: mostly worse than nothing


def test_the_threshold_for_an_accuracy_is_the_lowest_that_shows_it():
    sure = np.array([0.9, 0.8, 0.8, 0.7, 0.6])
    right = np.array([True, True, True, True, False])

    def point(hits, n):
        return np.asarray(hits) / np.asarray(n)

    assert threshold_for_accuracy(sure, right, 1.0, at_least=point) == 0.7
    assert threshold_for_accuracy(sure, right, 0.8, at_least=point) == 0.6
    assert threshold_for_accuracy(sure, right[::-1], 0.99, at_least=point) is None
    ties = np.array([True, False, True, True, True])  # the two at 0.8 are answered together or not at all
    assert threshold_for_accuracy(sure, ties, 1.0, at_least=point) == 0.9


@pytest.mark.parametrize(("coverage", "least"), [(1.0, 0.6), (0.8, 0.7), (0.2, 0.9), (0.01, 0.9)])
def test_the_threshold_for_a_coverage_answers_that_many(coverage, least):
    assert threshold_for_coverage([0.6, 0.9, 0.7, 0.8, 0.75], coverage) == least


def test_answers_are_as_often_right_as_was_wanted():
    task = get("classification")
    logits, targets = drawn(n=3000)
    decision = fit_decision(task, logits[:1500], targets[:1500], Wanted(accuracy=0.9), split="val")
    probabilities = task.probabilities(decision.calibrated(logits[1500:]))
    given = np.array([not why for why in decision.refusals(probabilities.max(1), None)])
    right = (probabilities.argmax(1) == targets[1500:])[given]
    assert 0.1 < given.mean() < 0.9
    assert wilson(right.sum(), len(right))[1] >= 0.9


def test_an_accuracy_that_cannot_be_shown_is_refused_with_what_can():
    logits, targets = drawn(n=80)
    with pytest.raises(
        DataError, match=r"(?s)80 val samples cannot show an accuracy of 0.999.*at most 0\.\d+"
    ) as caught:
        fit_decision(get("classification"), logits, targets, Wanted(accuracy=0.999), split="val")
    assert caught.value.code == "E204"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"accuracy": 0.9, "coverage": 0.5}, "one threshold"),
        ({"accuracy": 1.5}, "accuracy = 1.5"),
        ({"coverage": 0.0}, "coverage = 0"),
        ({"method": "platt"}, "method = 'platt'"),
    ],
)
def test_settings_that_cannot_be(settings, words):
    with pytest.raises(UsageError, match=words):
        Wanted(**settings)


def test_generalized_entropy_by_hand():
    shares = np.array([[0.5, 0.5], [1.0, 0.0], [0.9, 0.1]])
    assert generalized_entropy(shares) == pytest.approx([2 * 0.25**0.1, 0.0, 2 * 0.09**0.1])
    assert generalized_entropy(shares, gamma=1.0) == pytest.approx([0.5, 0.0, 0.18])


def test_unfamiliarity_is_the_share_of_validation_that_was_more_familiar():
    logits, targets = drawn(n=1000)
    decision = fit_decision(get("classification"), logits, targets, Wanted(method="none"), split="val")
    shares = decision.unfamiliarity(special.softmax(logits, axis=1))
    assert shares is not None
    assert shares.min() == 0
    assert shares.max() == 1
    assert np.sort(shares) == pytest.approx(np.linspace(0, 1, 1000), abs=0.01)
    assert decision.unfamiliarity(np.full((1, 5), 0.2))[0] > 0.9
    assert decision.unfamiliarity(np.eye(5)[:1])[0] == 0


def test_reasons_for_no_answer():
    decision = Decision(least_probability=0.5, most_unfamiliar=0.9)
    assert decision.refusals([0.4, 0.6, 0.6, 0.4], [0.1, 0.1, 0.95, 0.95]) == ("unsure", "", "unfamiliar", "unfamiliar")
    assert decision.refusals([0.4, 0.6], None) == ("unsure", "")
    assert Decision().refusals([0.0], [1.0]) == ("",)


def test_a_decision_survives_being_written():
    decision = Decision((0.5,), (0.1, 0.2), 0.7, (1.0, 2.0), 0.9, {"n": 3})
    assert Decision.from_dict(decision.to_dict()) == decision
    assert Decision().to_dict() == {}
    assert Decision.from_dict({}) == Decision.from_dict(None) == Decision()
    decision.require_width(2)


@pytest.mark.parametrize(
    "values", [{"scale": [float("nan")]}, {"scale": "x"}, {"unknown": 1}, {"least_probability": True}, {"fitted": 3}]
)
def test_a_decision_of_another_kind_is_refused(values):
    with pytest.raises(ArtifactError, match="calibration is of another kind"):
        Decision.from_dict(values)


def test_a_decision_of_another_width_is_refused():
    with pytest.raises(ArtifactError, match="3 outputs in a model of 2"):
        Decision(bias=(0.0, 0.0, 0.0)).require_width(2)
