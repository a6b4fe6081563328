"""How well any number of labels per sample was told: exact, from counts.

`targets` and `predictions` are (N, K) of 0 and 1. Shares without a denominator are 0; means over labels leave out the
labels that do not occur: F1 takes those that occur in truth or prediction, average precision those in the truth.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kiln.metrics.classification import Floats


def sigmoid(logits: ArrayLike) -> Floats:
    """Probabilities of independent labels, in float64, without overflow."""
    return np.exp(-np.logaddexp(0.0, -np.asarray(logits, np.float64)))


def binary_log_losses(logits: ArrayLike, targets: ArrayLike) -> Floats:
    """Minus the log of the probability given to what is true, averaged over the labels of each sample.

    Args:
        logits: (N, K).
        targets: (N, K), 0 or 1.
    Returns: (N,) float64.
    """
    signs = 1.0 - 2.0 * np.asarray(targets, np.float64)
    return np.logaddexp(0.0, signs * np.asarray(logits, np.float64)).mean(axis=1)


def exact_matches(targets: NDArray, predictions: NDArray) -> NDArray[np.bool_]:
    """Whether all labels of a sample were told. Returns: (N,)."""
    return (np.asarray(targets, bool) == np.asarray(predictions, bool)).all(axis=1)


def label_shares(targets: NDArray, predictions: NDArray) -> Floats:
    """The share of the K labels of each sample that were told. Returns: (N,); the mean is the label accuracy."""
    return (np.asarray(targets, bool) == np.asarray(predictions, bool)).mean(axis=1)


def label_counts(targets: NDArray, predictions: NDArray) -> tuple[NDArray, NDArray, NDArray]:
    """Per label: hits (true and predicted), predicted, actual. Returns: three (K,) int64."""
    targets, predictions = np.asarray(targets, bool), np.asarray(predictions, bool)
    return (targets & predictions).sum(axis=0), predictions.sum(axis=0), targets.sum(axis=0)
