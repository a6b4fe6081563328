"""All named metrics of the tasks against scikit-learn: random, tied, absent-class and one-class data."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn
from sklearn.calibration import calibration_curve
from test_metrics_sklearn import label_sets, predictions

from kiln import tasks
from kiln.metrics import classification, ranking, reliability
from kiln.metrics.selective import Answered

many = settings(max_examples=60, deadline=None)
task, labels = tasks.get("classification"), tasks.get("multilabel")


def close(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)


def values_of(which, scores, targets, num_classes, names="all"):
    found = which.metrics(scores, targets, tuple(map(str, range(num_classes))), intervals=False, names=names)
    return {name: metric.value for name, metric in found.items()}


def average_of(function, targets, said, average, **options):
    return function(targets, said, average=average, zero_division=0, **options)


@many
@given(predictions())
def test_shares_of_every_average_and_agreement(sample):
    targets, scores, num_classes = sample
    said = scores.argmax(axis=1)
    ours = values_of(task, scores, targets, num_classes)
    for average in ("macro", "micro", "weighted"):
        close(ours[f"precision_{average}"], average_of(sklearn.precision_score, targets, said, average))
        close(ours[f"recall_{average}"], average_of(sklearn.recall_score, targets, said, average))
        for beta in (0.5, 1, 2):
            close(ours[f"f{beta}_{average}"], average_of(sklearn.fbeta_score, targets, said, average, beta=beta))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one class only
        close(ours["mcc"], sklearn.matthews_corrcoef(targets, said))
        kappa = sklearn.cohen_kappa_score(targets, said)
        close(ours["balanced_accuracy"], sklearn.balanced_accuracy_score(targets, said))
    assert ("kappa" in ours) == (not np.isnan(kappa))
    if "kappa" in ours:
        close(ours["kappa"], kappa)
    else:
        assert np.isnan(values_of(task, scores, targets, num_classes, ["kappa"])["kappa"])
    close(ours["accuracy"], sklearn.accuracy_score(targets, said))


@many
@given(predictions())
def test_curves_of_one_class_against_the_rest(sample):
    targets, scores, num_classes = sample
    probabilities = classification.softmax(scores)
    ours = values_of(task, scores, targets, num_classes)
    areas, precisions = [], []
    for index in range(num_classes):
        truth = targets == index
        if truth.any():
            precisions.append(sklearn.average_precision_score(truth, probabilities[:, index]))
        if truth.any() and not truth.all():
            areas.append(sklearn.roc_auc_score(truth, probabilities[:, index]))
    close(ours["average_precision"], np.mean(precisions))
    assert ("roc_auc" in ours) == bool(areas)
    if areas and num_classes == 2:
        close(ours["roc_auc"], sklearn.roc_auc_score(targets, probabilities[:, 1]))
    elif areas:
        close(ours["roc_auc"], np.mean(areas))
    if len(areas) == num_classes > 2:
        close(ours["roc_auc"], sklearn.roc_auc_score(targets, probabilities, multi_class="ovr", average="macro"))


@many
@given(predictions())
def test_probabilities(sample):
    targets, scores, num_classes = sample
    probabilities = classification.softmax(scores)
    ours = values_of(task, scores, targets, num_classes)
    labels_ = list(range(num_classes))
    close(ours["loss"], sklearn.log_loss(targets, probabilities, labels=labels_))
    if num_classes == 2:
        close(ours["brier"], sklearn.brier_score_loss(targets, probabilities[:, 1], pos_label=1, labels=labels_))
    else:
        close(ours["brier"], sklearn.brier_score_loss(targets, probabilities, labels=labels_))
    sure, right = probabilities.max(axis=1), scores.argmax(axis=1) == targets
    close(ours["ece"], expected_error(sure, right))
    close(ours["ece_adaptive"], adaptive_error(sure, right))


def expected_error(sure, right):
    """From scikit-learn's reliability diagram and the sizes of its bins."""
    happened, said = calibration_curve(right, sure, n_bins=15, strategy="uniform")
    place = np.searchsorted(np.linspace(0, 1, 16)[1:-1], sure)
    sizes = np.unique(place, return_counts=True)[1]
    return float(np.abs(happened - said) @ sizes / len(sure))


def adaptive_error(sure, right):
    """The obvious way: walk up the sorted samples, close a bin at every fifteenth part, and never part equal ones."""
    order = np.argsort(sure, kind="stable")
    num_bins, gap, total, taken = min(15, len(sure)), 0.0, 0.0, 0
    for rank, row in enumerate(order, start=1):
        gap += sure[row] - right[row]
        ends = any(round(part * len(sure) / num_bins) in range(taken + 1, rank + 1) for part in range(1, num_bins))
        if rank == len(sure) or (ends and sure[order[rank]] > sure[row]):
            total, gap, taken = total + abs(gap), 0.0, rank
    return total / len(sure)


@many
@given(predictions(), st.sampled_from([0.0, 0.05, 0.1, 0.3]))
def test_coverage_and_area_of_risk(sample, risk):
    targets, scores, num_classes = sample
    probabilities = classification.softmax(scores)
    sure, right = probabilities.max(axis=1), scores.argmax(axis=1) == targets
    ours = values_of(task, scores, targets, num_classes, [f"coverage_at_risk_{risk:g}", "aurc"])
    answerable = [
        (sure >= threshold).mean() for threshold in sure if (~right[sure >= threshold]).mean() <= risk + 1e-12
    ]
    close(ours[f"coverage_at_risk_{risk:g}"], max(answerable, default=0.0))
    wrong, before, area = 0.0, 0, 0.0
    for threshold in np.unique(sure)[::-1]:
        tied = ~right[sure == threshold]
        for place in range(1, len(tied) + 1):
            area += (wrong + place * tied.mean()) / (before + place)
        wrong, before = wrong + tied.sum(), before + len(tied)
    close(ours["aurc"], area / len(sure))


@many
@given(label_sets())
def test_labels(sample):
    targets, scores = sample
    said, num_labels = (scores >= 0).astype(np.int64), targets.shape[1]
    ours = values_of(labels, scores, targets, num_labels)
    probabilities = labels.probabilities(scores)
    occurring = np.flatnonzero((targets + said).any(axis=0))
    for name, function in (("precision", sklearn.precision_score), ("recall", sklearn.recall_score)):
        for average in ("micro", "weighted"):
            close(ours[f"{name}_{average}"], average_of(function, targets, said, average))
        if len(occurring):
            close(ours[f"{name}_macro"], average_of(function, targets, said, "macro", labels=occurring))
    for beta in (0.5, 1, 2):
        for average in ("micro", "weighted"):
            close(ours[f"f{beta}_{average}"], average_of(sklearn.fbeta_score, targets, said, average, beta=beta))
    areas = [
        sklearn.roc_auc_score(targets[:, label], scores[:, label])
        for label in range(num_labels)
        if 0 < targets[:, label].sum() < len(targets)
    ]
    assert ("roc_auc" in ours) == bool(areas)
    if areas:
        close(ours["roc_auc"], np.mean(areas))
    briers = [sklearn.brier_score_loss(targets[:, k], probabilities[:, k], labels=[0, 1]) for k in range(num_labels)]
    close(ours["brier"], np.mean(briers))
    close(ours["loss"], sklearn.log_loss(targets.ravel(), probabilities.ravel(), labels=[0, 1]))
    close(ours["ece"], expected_error(probabilities.ravel(), targets.ravel() == 1))


@many
@given(predictions(), st.booleans())
def test_every_interval_holds_its_value(sample, grouped):
    targets, scores, num_classes = sample
    classes = tuple(map(str, range(num_classes)))
    groups = np.arange(len(targets)) // 3 if grouped else None
    found = task.metrics(scores, targets, classes, names="all", groups=groups)
    plain = task.metrics(scores, targets, classes, names="all", intervals=False)
    assert list(found) == list(plain)
    for name, metric in found.items():
        assert metric.value == plain[name].value
        if grouped and len(targets) <= 3:
            assert metric.low is metric.high is None, name
        else:
            assert metric.low <= metric.value <= metric.high, name
    details = task.details(scores, targets, classes)
    areas = [row["auc"] for row in details["per_class"] if row["auc"] is not None]
    if areas and num_classes > 2:
        close(np.mean(areas), found["roc_auc"].value)


@many
@given(predictions())
def test_counts_of_resamples_are_measures_of_the_repeated_samples(sample):
    targets, scores, num_classes = sample
    probabilities = classification.softmax(scores)
    sure, right = probabilities.max(axis=1), scores.argmax(axis=1) == targets
    drawn = np.random.default_rng(0).integers(0, 3, (2, len(targets)))
    drawn[:, 0] = 1
    answered = Answered(sure, right)
    truth = np.arange(num_classes) == targets[:, None]
    precisions = ranking.average_precisions(truth, probabilities, drawn)
    for times, area, coverage, precision in zip(
        drawn, answered.area(drawn), answered.coverage(drawn, risk=0.1), precisions, strict=True
    ):
        rows = np.repeat(np.arange(len(targets)), times)
        again = Answered(sure[rows], right[rows])
        close(area, again.area()[0])
        close(coverage, again.coverage(risk=0.1)[0])
        close(precision, ranking.average_precisions(truth[rows], probabilities[rows]))


def test_the_area_of_two_classes_has_delongs_interval():
    draws = np.random.default_rng(0)
    truth = draws.random(80) < 0.4
    scores = np.round(draws.normal(size=80) + 1.2 * truth, 1)
    ours = ranking.mean_roc_area_interval(truth[:, None], scores[:, None])
    mine, others = scores[truth], scores[~truth]
    wins = (mine[:, None] > others) + 0.5 * (mine[:, None] == others)
    variance = wins.mean(axis=1).var(ddof=1) / len(mine) + wins.mean(axis=0).var(ddof=1) / len(others)
    assert (ours[1] - ours[0]) == pytest.approx(2 * 1.96 * np.sqrt(variance), rel=0.1)
    single = ranking.mean_roc_area_interval(truth[:, None], scores[:, None], groups=np.arange(80))
    assert (single[1] - single[0]) == pytest.approx(ours[1] - ours[0], rel=0.05)


def test_a_calibrated_model_lies_within_its_band_95_times_of_100():
    draws = np.random.default_rng(1)
    inside = {"equal_width": 0, "equal_mass": 0}
    for repeat in range(200):
        sure = draws.beta(4, 2, 300)
        right = draws.random(300) < sure
        for name, diagram in reliability.reliability(sure, right, seed=repeat).items():
            inside[name] += int(diagram["band"][0] <= diagram["ece"] <= diagram["band"][1])
            assert sum(diagram["count"]) == 300
    assert all(178 <= count <= 200 for count in inside.values()), inside
    overconfident = reliability.reliability(np.full(400, 0.99), draws.random(400) < 0.7)
    assert overconfident["equal_width"]["ece"] > 5 * overconfident["equal_width"]["band"][1]
