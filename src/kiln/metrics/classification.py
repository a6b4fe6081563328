"""How well one class per sample was told: exact, from counts.

Where a share has no denominator (precision of a class that was never predicted) it is 0, as scikit-learn's
`zero_division=0`. Means over classes leave out what did not occur: `balanced_accuracy` takes the classes that have
samples, `f1_macro` those that have samples or predictions, both as scikit-learn does.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kiln.errors import DataError, NumericError
from kiln.metrics.intervals import bootstrap

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
    return float(np.trace(confusion) / confusion.sum())


def precision_recall_f1(confusion: NDArray[np.int64]) -> tuple[Floats, Floats, Floats]:
    """Per class. Returns: three (K,), 0 where there is no denominator."""
    return shares(np.diag(confusion), confusion.sum(axis=0), confusion.sum(axis=1))


def shares(hits: NDArray, predicted: NDArray, actual: NDArray) -> tuple[Floats, Floats, Floats]:
    """Precision, recall and F1 from counts of any shape: hits, all that were predicted, all that there are."""
    return _share(hits, predicted), _share(hits, actual), _share(2 * hits, predicted + actual)


def balanced_accuracy(confusion: NDArray[np.int64]) -> float:
    """The mean recall of the classes that have samples."""
    support = confusion.sum(axis=1)
    return float((np.diag(confusion)[support > 0] / support[support > 0]).mean())


def f1_macro(confusion: NDArray[np.int64]) -> float:
    """The mean F1 of the classes that have samples or predictions."""
    return float(macro_f1(np.diag(confusion), confusion.sum(axis=0), confusion.sum(axis=1)))


def macro_f1(hits: NDArray, predicted: NDArray, actual: NDArray) -> Floats:
    """The mean over the last axis of the F1 of what occurs, in truth or prediction; 0 where nothing does.

    Args:
        hits: (..., K) counts.
        predicted: (..., K).
        actual: (..., K).
    """
    occurs = (predicted + actual) > 0
    return _share(_share(2 * hits, predicted + actual).sum(axis=-1), occurs.sum(axis=-1))


def f1_macro_interval(confusion: NDArray[np.int64], *, seed: int = 0) -> tuple[float, float]:
    """95 % interval of `f1_macro`, resampled within each true class."""
    # Cells in column order, so that what was predicted of each class is the sum of one run of cells.
    columns, rows = np.nonzero(confusion.T)
    first_of_column = np.flatnonzero(np.diff(columns, prepend=-1))
    predicted_classes = columns[first_of_column]
    diagonal = np.flatnonzero(rows == columns)
    num_classes, actual = len(confusion), confusion.sum(axis=1)

    def statistic(drawn: NDArray[np.int64]) -> Floats:
        predicted = np.zeros((len(drawn), num_classes))
        predicted[:, predicted_classes] = np.add.reduceat(drawn, first_of_column, axis=1)
        hits = np.zeros((len(drawn), num_classes))
        hits[:, rows[diagonal]] = drawn[:, diagonal]
        return macro_f1(hits, predicted, actual)

    return bootstrap(confusion[rows, columns], statistic, strata=rows, seed=seed)


def _share(part: ArrayLike, whole: ArrayLike) -> Floats:
    part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    return np.divide(part, whole, out=np.zeros(np.broadcast_shapes(part.shape, whole.shape)), where=whole > 0)
