"""The few lines that turn counts into `Metric`s and table rows, the same for every task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kiln.metrics import Metric, wilson
from kiln.metrics.classification import check_finite, shares


def counted(logits: NDArray, targets: NDArray, weights: NDArray | None) -> tuple[NDArray[np.float64], NDArray]:
    """The samples that count (weight above 0), with their logits in float64, checked to be finite."""
    logits, targets = np.asarray(logits), np.asarray(targets)
    if weights is not None:
        counts = np.asarray(weights) > 0
        logits, targets = logits[counts], targets[counts]
    return check_finite(logits), targets


def score(
    value: float,
    n: int,
    intervals: bool,
    interval: Callable[[], tuple[ArrayLike, ArrayLike]],
    *,
    higher_is_better: bool = True,
) -> Metric:
    """A metric, with its interval only when asked for."""
    low, high = (float(np.asarray(end)) for end in interval()) if intervals else (None, None)
    return Metric(float(value), low, high, n, higher_is_better)


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
