"""The few lines that turn counts into `Metric`s and table rows, the same for every task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kiln.errors import UsageError
from kiln.metrics import Metric, ranking, wilson
from kiln.metrics.classification import check_finite, shares
from kiln.metrics.measures import Answers, How, Measure
from kiln.metrics.own import Own
from kiln.names import names_code


def counted(
    logits: NDArray, targets: NDArray, weights: NDArray | None, groups: NDArray | None = None
) -> tuple[NDArray[np.float64], NDArray, NDArray | None]:
    """The samples that count (weight above 0): logits in float64, checked to be finite, targets, and groups if any."""
    logits, targets = np.asarray(logits), np.asarray(targets)
    groups = None if groups is None else np.asarray(groups)
    if weights is not None:
        counts = np.asarray(weights) > 0
        logits, targets = logits[counts], targets[counts]
        groups = None if groups is None else groups[counts]
    return check_finite(logits), targets, groups


Names = Sequence[str] | None
"""Which metrics: some, `all` that a table has and that exist for these data, or the short list of training (None)."""


def measured(
    answers: Answers,
    names: Names,
    *,
    default: tuple[str, ...],
    every: tuple[str, ...],
    find: Callable[[str], Measure | None],
    how: How,
) -> dict[str, Metric]:
    """Metrics by name.

    Args:
        answers: what the model said.
        names: which; the user's own as module:name. `all`, alone or among others, are all that have a value for these
            data; a name that was given stands there all the same, with NaN.
        default: the short list.
        every: all names.
        find: the measure of a name, or None.
        how: intervals are made.
    Raises: UsageError: no such metric, or one of the user's own fails.
    """
    given = default if names is None else (names,) if isinstance(names, str) else tuple(names)
    wanted = dict.fromkeys(name for one in given for name in (every if one == "all" else (one,)))
    measures: dict[str, Measure] = {}
    for name in wanted:
        measure = Own(name) if names_code(name) else find(name)
        if measure is None:
            hint = "also topK_accuracy, fBETA_macro, recall[CLASS] and their like, or your own, as module:name"
            raise UsageError("E101", f"unknown metric {name!r}", got=name, choices=list(every), hint=hint)
        measures[name] = measure
    found = {name: measure(answers, how) for name, measure in measures.items()}
    return {name: metric for name, metric in found.items() if name in given or not np.isnan(metric.value)}


def curve_row(answers: Any, index: int) -> dict[str, float | None]:
    """Of one class against the rest, the ROC area and average precision; None where it does not exist."""
    one = slice(index, index + 1)
    truth, scores = answers.truth[:, one], answers.scores[:, one]
    values = {
        "auc": ranking.mean_roc_area(truth, scores),
        "average_precision": ranking.mean_known(ranking.average_precisions(truth, scores)),
    }
    return {name: None if np.isnan(value) else value for name, value in values.items()}


def table_row(name: str, hits: int, predicted: int, actual: int) -> dict[str, Any]:
    """One line of the per-class table, ready for JSON."""
    precision, recall, f1 = (
        float(part) for part in shares(np.asarray(hits), np.asarray(predicted), np.asarray(actual))
    )
    low, high = (float(end) for end in wilson(hits, actual))
    return {
        "class": name,
        "precision": precision,
        "recall": recall,
        "recall_low": low,
        "recall_high": high,
        "f1": f1,
        "support": int(actual),
    }
