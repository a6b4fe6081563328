"""Making probabilities true: a scale and a bias of the logits, fitted on held-out samples.

Temperature scaling has one number and changes no prediction; vector scaling has two for each output.
Source: Guo et al. 2017, arXiv:1706.04599, section 4.2; differs: targets are smoothed as in Platt 1999, eq. 6, so that the
optimum is finite where every sample is right, and a fit counts only if it helps on samples that it did not see.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Method = Literal["none", "temperature", "vector"]
METHODS: tuple[Method, ...] = ("none", "temperature", "vector")

LEAST_SAMPLES = 50
"""Fewer held-out samples than this cannot tell how sure a model should be."""
NUM_FOLDS = 5
_MOST_STEPS = 2000
_LARGEST_SCALE = 100.0

Losses = Callable[[Floats, Floats], tuple[Floats, Floats]]
"""Logits and targets (N, K) -> the loss of each sample (N,) and its gradient (N, K)."""


@dataclass(frozen=True)
class Calibration:
    """What was fitted.

    Attributes:
        method: that was used: `none` where a fit did not help, or there were too few samples.
        scale: factor of the logits, none, one or one for each output.
        bias: added afterwards; none or one for each output.
        loss_before: mean log loss of the samples without it.
        loss_after: of samples that each fit had not seen, with it.
        n: samples.
    """

    method: Method
    scale: tuple[float, ...]
    bias: tuple[float, ...]
    loss_before: float
    loss_after: float
    n: int


def fit_softmax(logits: ArrayLike, targets: ArrayLike, *, method: Method = "temperature") -> Calibration:
    """Calibrate a model of one class per sample.

    Args:
        logits: (N, K) of held-out samples.
        targets: (N,) class indices.
        method: one of `METHODS`.
    """
    logits, targets = np.asarray(logits, np.float64), np.asarray(targets)
    hard = np.zeros_like(logits)
    hard[np.arange(len(targets)), targets] = 1.0
    return _fit(logits, hard, _softmax, method=method)


def fit_sigmoid(logits: ArrayLike, targets: ArrayLike, *, method: Method = "temperature") -> Calibration:
    """Calibrate a model of any number of labels per sample; `targets` is (N, K) of 0 and 1. See `fit_softmax`."""
    return _fit(np.asarray(logits, np.float64), np.asarray(targets, np.float64), _sigmoid, method=method)


def _softmax(logits: Floats, targets: Floats) -> tuple[Floats, Floats]:
    shifted = logits - logits.max(axis=1, keepdims=True)
    powers = np.exp(shifted)
    total = powers.sum(axis=1, keepdims=True)
    return np.log(total[:, 0]) - (targets * shifted).sum(axis=1), powers / total - targets


def _sigmoid(logits: Floats, targets: Floats) -> tuple[Floats, Floats]:
    probabilities = np.exp(-np.logaddexp(0.0, -logits))
    losses = (np.logaddexp(0.0, logits) - targets * logits).mean(axis=1)
    return losses, (probabilities - targets) / logits.shape[1]


def _fit(logits: Floats, targets: Floats, losses: Losses, *, method: Method) -> Calibration:
    n, before = len(logits), float(losses(logits, targets)[0].mean()) if len(logits) else 0.0
    nothing = Calibration("none", (), (), before, before, n)
    if method == "none" or n < LEAST_SAMPLES:
        return nothing
    fit = _fit_scale if method == "temperature" else _fit_vector
    unseen = np.empty(n)
    for fold in range(NUM_FOLDS):
        held = np.arange(n) % NUM_FOLDS == fold
        scale, bias = fit(logits[~held], _smoothed(targets[~held], losses), losses)
        unseen[held] = losses(logits[held] * scale + bias, targets[held])[0]
    after = float(unseen.mean())
    if not after < before:
        return nothing
    scale, bias = fit(logits, _smoothed(targets, losses), losses)
    return Calibration(method, tuple(scale.tolist()), tuple(bias.tolist()) if bias.any() else (), before, after, n)


def _smoothed(targets: Floats, losses: Losses) -> Floats:
    """Targets as a Bayesian with one sample of each outcome before the first would have them."""
    share = 1.0 / (len(targets) + 2)
    others = targets.shape[1] - 1 if losses is _softmax else 1
    return targets * (1 - share) + (1 - targets) * share / others


def _fit_scale(logits: Floats, targets: Floats, losses: Losses) -> tuple[Floats, Floats]:
    """One factor of all logits: the root of a rising derivative, found by halving."""

    def slope(scale: float) -> float:
        return float((losses(logits * scale, targets)[1] * logits).sum())

    low, high = 1.0 / _LARGEST_SCALE, _LARGEST_SCALE
    if slope(low) >= 0:
        return np.array([low]), np.zeros(1)
    if slope(high) <= 0:
        return np.array([high]), np.zeros(1)
    for _ in range(60):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return np.array([(low * high) ** 0.5]), np.zeros(1)


def _fit_vector(logits: Floats, targets: Floats, losses: Losses) -> tuple[Floats, Floats]:
    """A factor and a bias for each output, pulled towards one common factor as by one sample for each.

    Gradient descent with momentum on standardised logits; the problem is convex.
    """
    common = float(_fit_scale(logits, targets, losses)[0][0])
    n, width = logits.shape
    spread = np.maximum(logits.std(axis=0), 1e-6)
    pull = 1.0 / n
    point = np.zeros((2, width))  # changes of the factors in units of 1 / spread, and biases
    ahead, momentum = point.copy(), 1.0
    rate = 1.0 / (1.0 + pull)  # the Hessian of a softmax or a mean of sigmoids is at most 1/2 in these units
    for _ in range(_MOST_STEPS):
        scaled = logits * (common + ahead[0] / spread) + ahead[1]
        error = losses(scaled, targets)[1]
        gradient = np.stack([(error * logits / spread).mean(axis=0), error.mean(axis=0)]) + pull * ahead
        new = ahead - rate * gradient
        following = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        ahead, point, momentum = new + (momentum - 1) / following * (new - point), new, following
        if np.abs(gradient).max() < 1e-8:
            break
    return common + point[0] / spread, point[1]


def threshold_for_accuracy(
    sure: ArrayLike, right: ArrayLike, accuracy: float, *, at_least: Callable[[ArrayLike, ArrayLike], Floats]
) -> float | None:
    """The lowest probability from which answers are right as often as wanted, with a margin for chance.

    Args:
        sure: (N,) probability of each answer.
        right: (N,) whether it is right.
        accuracy: wanted among the answers that are given.
        at_least: counts of right answers and of answers -> what their share is at least, such as the lower end of an
            interval.
    Returns: None where no threshold shows that accuracy.
    """
    sure, right = np.asarray(sure, np.float64), np.asarray(right, bool)
    order = np.argsort(-sure, kind="stable")
    answered = np.arange(1, len(sure) + 1)
    fine = at_least(np.cumsum(right[order]), answered) >= accuracy
    fine &= np.append(np.diff(sure[order]) < 0, True)  # equal probabilities are answered together
    return float(sure[order][np.flatnonzero(fine)[-1]]) if fine.any() else None


def threshold_for_coverage(sure: ArrayLike, coverage: float) -> float:
    """The probability that a share `coverage` of the answers reaches; `sure` is (N,)."""
    ordered = np.sort(np.asarray(sure, np.float64))[::-1]
    return float(ordered[max(int(np.ceil(coverage * len(ordered))) - 1, 0)])
