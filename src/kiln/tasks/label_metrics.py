"""The metrics of any number of labels per sample, by name."""

from __future__ import annotations

from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kiln.metrics import counts, multilabel, ranking, reliability
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
from kiln.tasks.class_metrics import BETAS, RISKS, find_number, of_class_name

Floats = NDArray[np.float64]


class LabelAnswers(Answers):
    """What a model said of N samples with any of K labels; what metrics share is computed once.

    Args:
        logits: (N, K) float64; a label is given from 0 on, a probability of one half.
        targets: (N, K) of 0 and 1.
        classes: K names.
    """

    def __init__(self, logits: Floats, targets: NDArray, classes: tuple[str, ...]) -> None:
        self.logits, self.targets, self.classes = logits, targets, classes
        self.n = len(targets)
        self.truth, self.said = np.asarray(targets, bool), logits >= 0
        self.strata = None

    @cached_property
    def probabilities(self) -> Floats:
        """(N, K)."""
        return multilabel.sigmoid(self.logits)

    @cached_property
    def units(self) -> Counts:
        """(N, K) what each sample adds to the counts."""
        return Counts(self.truth & self.said, self.said, self.truth)

    @cached_property
    def counts(self) -> Counts:
        """Per label."""
        return Counts(*multilabel.label_counts(self.truth, self.said))

    @cached_property
    def without_one(self) -> tuple[NDArray[np.int64], Counts]:
        """For the jackknife: each sample once, and the counts without it."""
        return np.ones(self.n, np.int64), counts.without_one(
            self.counts, Counts(*(x.astype(np.int64) for x in self.units))
        )

    @cached_property
    def right(self) -> NDArray[np.bool_]:
        """(N,) whether all labels were told."""
        return multilabel.exact_matches(self.truth, self.said)

    @cached_property
    def sure(self) -> Floats:
        """(N,) the probability of the least certain label's answer."""
        return np.maximum(self.probabilities, 1 - self.probabilities).min(axis=1)

    @cached_property
    def scores(self) -> Floats:
        """(N, K) what puts samples in order: logits, which tell apart what probabilities round to 1."""
        return self.logits

    @cached_property
    def answered(self) -> Answered:
        """The samples from the surest down."""
        return Answered(self.sure, self.right)


def _mean_average_precision(answers: LabelAnswers) -> float:
    """Of the labels that occur; 0 where none does."""
    return float(np.nan_to_num(ranking.mean_known(ranking.average_precisions(answers.truth, answers.logits))))


def _average_precision_interval(answers: LabelAnswers, how: How) -> Ends:
    if not answers.truth.any():
        return 0.0, 1.0
    return ranking.mean_average_precision_interval(answers.truth, answers.logits, groups=groups_of(how))


def _calibration_error(bins: Any) -> WithOwnInterval:
    def interval(answers: LabelAnswers, how: How) -> Ends:
        of = np.arange(answers.n) if how.groups is None else how.groups.of
        said, truth = answers.probabilities.ravel(), answers.truth.ravel()
        groups = np.repeat(of, answers.truth.shape[1])
        return reliability.calibration_error_interval(bins(said), said, truth, groups=groups, seed=how.seed)

    def value(answers: LabelAnswers) -> float:
        said = answers.probabilities.ravel()
        return reliability.calibration_error(bins(said), said, answers.truth.ravel())

    return WithOwnInterval(value, interval, higher_is_better=False)


TABLE: dict[str, Measure] = {
    "accuracy": Share(lambda answers: answers.right),
    "label_accuracy": Mean(lambda answers: multilabel.label_shares(answers.truth, answers.said), higher_is_better=True),
    **{
        f"{name}_{average}": OfCounts(partial(function, average=average))
        for name, function in (("precision", counts.precision), ("recall", counts.recall))
        for average in AVERAGES
    },
    **{
        f"f{beta}_{average}": OfCounts(partial(counts.f_beta, beta=beta, average=average))
        for beta in BETAS
        for average in AVERAGES
    },
    "roc_auc": WithOwnInterval(
        lambda answers: ranking.mean_roc_area(answers.truth, answers.scores),
        lambda answers, how: ranking.mean_roc_area_interval(answers.truth, answers.scores, groups=groups_of(how)),
    ),
    "mean_average_precision": WithOwnInterval(
        _mean_average_precision,
        _average_precision_interval,
    ),
    "brier": Mean(lambda answers: np.square(answers.probabilities - answers.truth).mean(axis=1)),
    "ece": _calibration_error(reliability.equal_width),
    "ece_adaptive": _calibration_error(reliability.equal_mass),
    **{
        f"coverage_at_risk_{risk}": OfSamples(lambda answers, risk=risk: partial(answers.answered.coverage, risk=risk))
        for risk in RISKS
    },
    "aurc": OfSamples(lambda answers: answers.answered.area, higher_is_better=False),
    "loss": Mean(lambda answers: multilabel.binary_log_losses(answers.logits, answers.targets)),
}

DEFAULT_NAMES = ("accuracy", "label_accuracy", "f1_macro", "f1_micro", "mean_average_precision", "loss")


def find(name: str, classes: tuple[str, ...]) -> Measure | None:
    """The measure of a name, also of one that holds a number or a label: `f0.3_macro`, `recall[cat]`."""
    return TABLE.get(name) or find_number(name) or of_class_name(name, classes)
