"""How well one class per sample was told: exact, from counts.

Where a share has no denominator (precision of a class that was never predicted) it is 0, as scikit-learn's
`zero_division=0`. Means over classes leave out what did not occur: `balanced_accuracy` takes the classes that have
samples, `f1_macro` those that have samples or predictions, both as scikit-learn does.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kiln.errors import DataError, NumericError
from kiln.metrics import counts
from kiln.metrics.counts import share

Floats = NDArray[np.float64]


def check_finite(logits: NDArray) -> Floats:
    """The outputs of a model in float64, if there are any and all are finite.

    Raises: DataError: no samples. NumericError: not finite.
    """
    logits = np.asarray(logits, np.float64)
    if not len(logits):
        raise DataError("E204", "no samples to evaluate", expected="at least one sample that can be read")
    bad = np.flatnonzero(~np.isfinite(logits).reshape(len(logits), -1).all(axis=1))
    if len(bad):
        raise NumericError(
            "E602",
            f"the model's outputs are not finite for {len(bad)} of {len(logits)} samples",
            where=f"first at sample {bad[0]}",
            hint="the weights have diverged: train with a smaller learning rate, or with gradient clipping",
        )
    return logits


def softmax(logits: ArrayLike) -> Floats:
    """Probabilities over the last axis, in float64."""
    logits = np.asarray(logits, np.float64)
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def log_losses(logits: ArrayLike, targets: ArrayLike) -> Floats:
    """Minus the log of the probability given to the true class, per sample.

    Computed from logits, so it is exact where probabilities would round to 0.

    Args:
        logits: (N, K).
        targets: (N,) class indices.
    Returns: (N,) float64; their mean is the log loss.
    """
    logits, targets = np.asarray(logits, np.float64), np.asarray(targets)
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(targets)), targets]


def ranks(scores: ArrayLike, targets: ArrayLike) -> NDArray[np.int64]:
    """The place of the true class among all, 0 for the best. Equal scores rank by class index, as argmax does.

    Args:
        scores: (N, K), logits or probabilities.
        targets: (N,) class indices.
    Returns: (N,); the top-k accuracy is the mean of `ranks < k`.
    """
    scores, targets = np.asarray(scores), np.asarray(targets)
    own = scores[np.arange(len(targets)), targets][:, None]
    earlier = np.arange(scores.shape[1]) < targets[:, None]
    return ((scores > own) | ((scores == own) & earlier)).sum(axis=1)


def confusion_matrix(targets: ArrayLike, predictions: ArrayLike, num_classes: int) -> NDArray[np.int64]:
    """Counts of samples: row = true class, column = predicted class. Returns: (K, K) int64."""
    cells = np.asarray(targets, np.int64) * num_classes + np.asarray(predictions, np.int64)
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def accuracy(confusion: NDArray[np.int64]) -> float:
    """The share of samples whose class was told."""
    return float(counts.accuracy(counts.of_confusion(confusion)))


def precision_recall_f1(confusion: NDArray[np.int64]) -> tuple[Floats, Floats, Floats]:
    """Per class. Returns: three (K,), 0 where there is no denominator."""
    return shares(np.diag(confusion), confusion.sum(axis=0), confusion.sum(axis=1))


def shares(hits: NDArray, predicted: NDArray, actual: NDArray) -> tuple[Floats, Floats, Floats]:
    """Precision, recall and F1 from counts of any shape: hits, all that were predicted, all that there are."""
    return share(hits, predicted), share(hits, actual), share(2 * hits, predicted + actual)


def balanced_accuracy(confusion: NDArray[np.int64]) -> float:
    """The mean recall of the classes that have samples."""
    return float(counts.balanced_accuracy(counts.of_confusion(confusion)))


def f1_macro(confusion: NDArray[np.int64]) -> float:
    """The mean F1 of the classes that have samples or predictions."""
    return float(counts.f_beta(counts.of_confusion(confusion)))


def macro_f1(hits: NDArray, predicted: NDArray, actual: NDArray) -> Floats:
    """The mean over the last axis of the F1 of what occurs, in truth or prediction; 0 where nothing does.

    Args:
        hits: (..., K) counts.
        predicted: (..., K).
        actual: (..., K).
    """
    occurs = (predicted + actual) > 0
    return share(share(2 * hits, predicted + actual).sum(axis=-1), occurs.sum(axis=-1))
