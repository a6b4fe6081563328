"""The metrics of one class per sample, by name."""

from __future__ import annotations

import re
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kiln.metrics import classification, counts, ranking, reliability
from kiln.metrics.counts import AVERAGES, Counts
from kiln.metrics.measures import (
    Answers,
    Ends,
    How,
    Mean,
    Measure,
    OfCounts,
    OfSamples,
    Share,
    WithOwnInterval,
    groups_of,
)
from kiln.metrics.selective import Answered

Floats = NDArray[np.float64]

RISKS = (0.01, 0.05, 0.1)
TOPS = (2, 3, 5, 10)
BETAS = (1, 2, 0.5)

_TOP = re.compile(r"top(\d+)_accuracy")
_F_BETA = re.compile(rf"f(\d+(?:\.\d+)?)_({'|'.join(AVERAGES)})")
_COVERAGE = re.compile(r"coverage_at_risk_(0?\.\d+|0|1)")
_OF_CLASS = re.compile(r"(precision|recall|f1|roc_auc|average_precision)\[(.+)\]")


class ClassAnswers(Answers):
    """What a model said of N samples of one class each; what metrics share is computed once.

    Args:
        logits: (N, K) float64.
        targets: (N,) class indices.
        classes: K names.
    """

    def __init__(self, logits: Floats, targets: NDArray[np.int64], classes: tuple[str, ...]) -> None:
        self.logits, self.targets, self.classes = logits, targets, classes
        self.n, self.strata = len(targets), targets

    @cached_property
    def probabilities(self) -> Floats:
        """(N, K)."""
        return classification.softmax(self.logits)

    @cached_property
    def said(self) -> NDArray[np.int64]:
        """(N,) predicted classes."""
        return self.logits.argmax(axis=1)

    @cached_property
    def confusion(self) -> NDArray[np.int64]:
        """(K, K): row = true class, column = predicted class."""
        return classification.confusion_matrix(self.targets, self.said, len(self.classes))

    @cached_property
    def counts(self) -> Counts:
        """Per class."""
        return counts.of_confusion(self.confusion)

    @cached_property
    def without_one(self) -> tuple[NDArray[np.int64], Counts]:
        """For the jackknife: samples of each cell of the confusion matrix, and the counts without one of them."""
        units, times = counts.cells(self.confusion)
        return times, counts.without_one(self.counts, units)

    @property
    def units(self) -> Counts:
        """(N, K) what each sample adds to the counts."""
        said = np.arange(len(self.classes)) == self.said[:, None]
        return Counts(self.truth & said, said, self.truth)

    @cached_property
    def truth(self) -> NDArray[np.bool_]:
        """(N, K), one true value in each row."""
        return np.arange(len(self.classes)) == self.targets[:, None]

    @cached_property
    def ranks(self) -> NDArray[np.int64]:
        """(N,) the place of the true class, 0 for the best."""
        return classification.ranks(self.logits, self.targets)

    @property
    def right(self) -> NDArray[np.bool_]:
        """(N,) whether the class was told."""
        return self.said == self.targets

    @cached_property
    def sure(self) -> Floats:
        """(N,) the highest probability."""
        return self.probabilities.max(axis=1)

    @property
    def scores(self) -> Floats:
        """(N, K) what puts samples in order, of one class against the rest."""
        return self.probabilities

    @cached_property
    def curves(self) -> tuple[NDArray[np.bool_], Floats]:
        """Truth and scores whose ROC curves are averaged: one class against the rest each; of two classes the second."""
        chosen = slice(1, 2) if len(self.classes) == 2 else slice(None)
        return self.truth[:, chosen], self.scores[:, chosen]

    @cached_property
    def answered(self) -> Answered:
        """The samples from the surest down."""
        return Answered(self.sure, self.right)


def _calibration_error(bins: Any) -> WithOwnInterval:
    def interval(answers: ClassAnswers, how: How) -> Ends:
        of = np.arange(answers.n) if how.groups is None else how.groups.of
        found = bins(answers.sure)
        return reliability.calibration_error_interval(found, answers.sure, answers.right, groups=of, seed=how.seed)

    def value(answers: ClassAnswers) -> float:
        return reliability.calibration_error(bins(answers.sure), answers.sure, answers.right)

    return WithOwnInterval(value, interval, higher_is_better=False)


def _average_precision_interval(answers: ClassAnswers, how: How) -> Ends:
    return ranking.mean_average_precision_interval(answers.truth, answers.probabilities, groups=groups_of(how))


def _top(k: int) -> Measure:
    return Share(lambda answers: answers.ranks < k)


def _coverage(risk: float) -> Measure:
    return OfSamples(lambda answers: partial(answers.answered.coverage, risk=risk))


def _micro() -> Measure:
    return Share(lambda answers: answers.right)  # each sample is one prediction: all micro shares are the accuracy


TABLE: dict[str, Measure] = {
    "accuracy": Share(lambda answers: answers.right),
    **{f"top{k}_accuracy": _top(k) for k in TOPS},
    "balanced_accuracy": OfCounts(counts.balanced_accuracy),
    **{
        f"{name}_{average}": OfCounts(partial(function, average=average)) if average != "micro" else _micro()
        for name, function in (("precision", counts.precision), ("recall", counts.recall))
        for average in AVERAGES
    },
    **{
        f"f{beta}_{average}": OfCounts(partial(counts.f_beta, beta=beta, average=average))
        if average != "micro"
        else _micro()
        for beta in BETAS
        for average in AVERAGES
    },
    "mcc": OfCounts(counts.matthews, least=-1.0),
    "kappa": OfCounts(counts.kappa, least=-1.0),
    "roc_auc": WithOwnInterval(
        lambda answers: ranking.mean_roc_area(*answers.curves),
        lambda answers, how: ranking.mean_roc_area_interval(*answers.curves, groups=groups_of(how)),
    ),
    "average_precision": WithOwnInterval(
        lambda answers: ranking.mean_known(ranking.average_precisions(answers.truth, answers.probabilities)),
        _average_precision_interval,
    ),
    "brier": Mean(lambda answers: reliability.brier_scores(answers.probabilities, answers.targets)),
    "ece": _calibration_error(reliability.equal_width),
    "ece_adaptive": _calibration_error(reliability.equal_mass),
    **{f"coverage_at_risk_{risk}": _coverage(risk) for risk in RISKS},
    "aurc": OfSamples(lambda answers: answers.answered.area, higher_is_better=False),
    "loss": Mean(lambda answers: classification.log_losses(answers.logits, answers.targets)),
}


def default_names(num_classes: int) -> tuple[str, ...]:
    """What training says at each validation."""
    top = ("top5_accuracy",) if num_classes > 5 else ()
    return ("accuracy", *top, "balanced_accuracy", "f1_macro", "loss")


def all_names(num_classes: int) -> tuple[str, ...]:
    """Every name of the table that says something of so many classes, in its order."""
    without = {f"top{k}_accuracy" for k in TOPS if k >= num_classes}
    return tuple(name for name in TABLE if name not in without)


def find(name: str, classes: tuple[str, ...]) -> Measure | None:
    """The measure of a name, also of one that holds a number or a class: `top4_accuracy`, `f0.3_macro`, `recall[cat]`."""
    if name in all_names(len(classes)):
        return TABLE[name]
    if found := _TOP.fullmatch(name):
        return _top(int(found[1])) if 0 < int(found[1]) <= len(classes) else None
    if (found := _F_BETA.fullmatch(name)) and found[2] == "micro":
        return _micro()
    return find_number(name) or of_class_name(name, classes)


def find_number(name: str) -> Measure | None:
    """An F of any beta, or the coverage at any risk: the same for every task."""
    if found := _F_BETA.fullmatch(name):
        return OfCounts(partial(counts.f_beta, beta=float(found[1]), average=found[2]))
    if found := _COVERAGE.fullmatch(name):
        return _coverage(float(found[1]))
    return None


def of_class_name(name: str, classes: tuple[str, ...]) -> Measure | None:
    """A metric of one class, such as `recall[cat]`."""
    found = _OF_CLASS.fullmatch(name)
    return of_class(found[1], classes.index(found[2])) if found and found[2] in classes else None


def of_class(what: str, index: int) -> Measure:
    """A metric of one class alone; NaN where it does not occur."""
    per_class = {
        "precision": lambda c: counts.share(c.hits[..., index], c.predicted[..., index]),
        "recall": lambda c: counts.share(c.hits[..., index], c.actual[..., index]),
        "f1": lambda c: counts.share(2 * c.hits[..., index], c.predicted[..., index] + c.actual[..., index]),
    }
    if what in per_class:
        own = {"precision": _precision_interval, "recall": _recall_interval}.get(what)
        return OfCounts(per_class[what], own=None if own is None else partial(own, index))
    one = slice(index, index + 1)
    if what == "roc_auc":
        return WithOwnInterval(
            lambda answers: ranking.mean_roc_area(answers.truth[:, one], answers.scores[:, one]),
            lambda answers, how: ranking.mean_roc_area_interval(
                answers.truth[:, one], answers.scores[:, one], groups=groups_of(how)
            ),
        )
    return WithOwnInterval(
        lambda answers: ranking.mean_known(ranking.average_precisions(answers.truth[:, one], answers.scores[:, one])),
        lambda answers, how: ranking.mean_average_precision_interval(
            answers.truth[:, one], answers.scores[:, one], groups=groups_of(how)
        ),
    )


def _recall_interval(index: int, answers: Any, how: How) -> Ends:
    del how
    return counts.wilson_of(answers.counts.hits[index], answers.counts.actual[index])


def _precision_interval(index: int, answers: Any, how: How) -> Ends:
    del how
    return counts.wilson_of(answers.counts.hits[index], answers.counts.predicted[index])
