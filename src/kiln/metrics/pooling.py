"""Several models' answers as one: the weighted mean of their probabilities, and the weights that suit it best."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kiln.errors import UsageError

Floats = NDArray[np.float64]

_MOST_STEPS = 20_000


def pool_softmax(logits: ArrayLike, weights: ArrayLike) -> Floats:
    """Logits whose softmax is the weighted mean of the members' own.

    The softmax leaves a row's level open; it is chosen so that the log-sum-exp, the level of familiarity, is the weighted
    mean of the members' too. One member alone gets its own logits back.

    Args:
        logits: (M, N, K), of each member.
        weights: (M,), from 0; they sum to 1.
    Returns: (N, K).
    """
    logits, weights = _checked(logits, weights)
    levels = np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    mean = _log_mean(logits - levels, weights)
    return mean + np.tensordot(weights, levels, axes=1)


def pool_sigmoid(logits: ArrayLike, weights: ArrayLike) -> Floats:
    """Logits whose sigmoid is the weighted mean of the members' own; arguments as for `pool_softmax`."""
    logits, weights = _checked(logits, weights)
    return _log_mean(-np.logaddexp(0.0, -logits), weights) - _log_mean(-np.logaddexp(0.0, logits), weights)


def mixture_weights(log_likelihoods: ArrayLike, *, tolerance: float = 1e-7) -> Floats:
    """The weights of a mean of probabilities that give the truth the highest likelihood.

    The problem is convex. Expectation maximisation never lowers the likelihood, and the largest mean ratio of a member to
    the mixture bounds what is still to be gained. Source: Dempster, Laird and Rubin 1977, JRSS B 39, 1-38, section 4.3.

    Args:
        log_likelihoods: (M, N) log of the probability that each member gives to the truth of each sample.
        tolerance: the mean log likelihood may end so far below the best there is.
    Returns: (M,), from 0, summing to 1.
    """
    values = np.asarray(log_likelihoods, np.float64)
    ratios = np.exp(values - values.max(axis=0))
    weights = np.full(len(ratios), 1 / len(ratios))
    for _ in range(_MOST_STEPS):
        gains = (ratios / (weights @ ratios)).mean(axis=1)
        if gains.max() - 1 <= tolerance:
            break
        weights = weights * gains
    return weights / weights.sum()


def greedy_weights(num_members: int, score: Callable[[Floats], float], *, num_rounds: int = 25) -> Floats:
    """Weights by taking in, round after round, the member that raises a score most; a member may come in again.

    Source: Caruana et al. 2004, Ensemble selection from libraries of models, ICML, sections 2.1 and 2.2. The best of all
    rounds is given back, so that it is never below the best member alone.

    Args:
        num_members: to choose from.
        score: of weights (M,); higher is better.
        num_rounds: most members to take in, repetitions included.
    """
    counts = np.zeros(num_members)
    best, best_score = counts, -np.inf
    for _ in range(num_rounds):
        tried = [score((counts + one) / (counts + one).sum()) for one in np.eye(num_members)]
        counts = counts + np.eye(num_members)[int(np.argmax(tried))]
        if max(tried) > best_score:
            best, best_score = counts, max(tried)
    return best / best.sum()


def _log_mean(logs: Floats, weights: Floats) -> Floats:
    """The log of the weighted mean of exponentials over the first axis, without overflow."""
    used = weights > 0
    logs = logs[used] + np.log(weights[used]).reshape(-1, *[1] * (logs.ndim - 1))
    return np.logaddexp.reduce(logs, axis=0)


def _checked(logits: ArrayLike, weights: ArrayLike) -> tuple[Floats, Floats]:
    logits, weights = np.asarray(logits, np.float64), np.asarray(weights, np.float64)
    if logits.ndim < 2 or weights.shape != logits.shape[:1] or (weights < 0).any() or abs(weights.sum() - 1) > 1e-6:
        what = f"weights = {weights.tolist()} for logits of shape {logits.shape}"
        raise UsageError("E102", what, expected="one weight for each member, from 0, that sum to 1")
    return logits, weights
