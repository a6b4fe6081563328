"""Which labels are probably wrong, from what models said of samples that they had not trained on.

Source: confident learning, Northcutt, Jiang and Chuang 2021, arXiv:1911.00068, sections 3.1 and 3.2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kiln.errors import UsageError

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class LabelErrors:
    """What was found.

    Attributes:
        order: (S,) the samples whose label is probably wrong, the most certain first.
        quality: (N,) of every sample, the probability that its label is as given: low is suspicious.
        suggested: (N, K) bool, the labels that the models would give instead; as given where nothing is suspicious.
        num_expected: how many labels are wrong, by an estimate that also counts those that no single sample shows.
    """

    order: NDArray[np.int64]
    quality: Floats
    suggested: NDArray[np.bool_]
    num_expected: float


def find_label_errors(probabilities: ArrayLike, targets: ArrayLike) -> LabelErrors:
    """Rank the samples whose labels are probably wrong.

    The confident joint estimates how many samples of each class are of another one; so many of them, those with the lowest
    probability of the class that they bear, are suspects (the paper's "prune by class"), where some other class is likelier.
    They are ranked by that probability (self-confidence): with many classes alike, a margin to the likeliest other class
    ranks what is merely hard to tell first, and so does asking that the other class be certain;
    `benchmarks/label_noise.py` shows the difference.

    Args:
        probabilities: (N, K), of models that did not train on the sample.
        targets: (N,) class indices; or (N, K) of 0 and 1, then each label is judged by itself, and a sample by the worst
            of its labels.
    Raises: UsageError: shapes that do not fit.
    """
    probabilities, targets = np.asarray(probabilities, np.float64), np.asarray(targets)
    if probabilities.ndim != 2 or targets.shape not in (probabilities.shape[:1], probabilities.shape):
        what = f"probabilities of shape {probabilities.shape} and targets of shape {targets.shape}"
        raise UsageError("E107", what, expected="(N, K) and (N,), or (N, K) both")
    return _of_classes(probabilities, targets) if targets.ndim == 1 else _of_labels(probabilities, targets > 0.5)


def self_confidence(probabilities: Floats, targets: NDArray[np.int64]) -> Floats:
    """(N,) the probability of the class that each sample bears."""
    return probabilities[np.arange(len(targets)), targets]


def normalized_margin(probabilities: Floats, targets: NDArray[np.int64]) -> Floats:
    """(N,) from 0 to 1: by how much the class that a sample bears is likelier than the likeliest other; one half is even."""
    others = probabilities.copy()
    others[np.arange(len(targets)), targets] = -np.inf
    return (self_confidence(probabilities, targets) - others.max(axis=1) + 1) / 2


def class_thresholds(probabilities: Floats, targets: NDArray[np.int64]) -> Floats:
    """(K,) how likely each class is, on average, for samples that bear its name (eq. 2); infinite where none does."""
    num_classes = probabilities.shape[1]
    counts = np.bincount(targets, minlength=num_classes)
    sums = np.bincount(targets, weights=self_confidence(probabilities, targets), minlength=num_classes)
    return np.divide(sums, counts, out=np.full(num_classes, np.inf), where=counts > 0)


def confident_classes(probabilities: Floats, targets: NDArray[np.int64]) -> NDArray[np.int64]:
    """(N,) the likeliest class among those that reach their threshold (eq. 1); -1 where none does."""
    reached = probabilities >= class_thresholds(probabilities, targets) - 1e-12  # a mean of equals may round up
    likeliest = np.where(reached, probabilities, -1.0).argmax(axis=1)
    return np.where(reached.any(axis=1), likeliest, -1)


def confident_joint(probabilities: Floats, targets: NDArray[np.int64]) -> NDArray[np.int64]:
    """(K, K) how many samples that bear a class (row) are confidently of a class (column)."""
    num_classes = probabilities.shape[1]
    found = confident_classes(probabilities, targets)
    counted = found >= 0
    cells = np.bincount(targets[counted] * num_classes + found[counted], minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes)


def expected_errors(probabilities: Floats, targets: NDArray[np.int64]) -> Floats:
    """(K,) how many samples of each class are of another: the joint, each row brought to the size of its class (eq. 3)."""
    joint = confident_joint(probabilities, targets).astype(np.float64)
    rows = joint.sum(axis=1)
    wrong = np.divide(rows - np.diag(joint), rows, out=np.zeros(len(rows)), where=rows > 0)
    return np.bincount(targets, minlength=len(rows)).astype(np.float64) * wrong


def _of_classes(probabilities: Floats, targets: NDArray[np.int64]) -> LabelErrors:
    expected, quality = expected_errors(probabilities, targets), self_confidence(probabilities, targets)
    likeliest = probabilities.argmax(axis=1)
    ranked = np.argsort(quality, kind="stable")
    place = np.empty(len(targets), np.int64)  # of each sample among those of its class, the least likely first
    for number in np.unique(targets):
        members = ranked[targets[ranked] == number]
        place[members] = np.arange(len(members))
    suspicious = np.asarray((place < np.rint(expected)[targets]) & (likeliest != targets))
    suggested = np.where(suspicious, likeliest, targets)[:, None] == np.arange(probabilities.shape[1])
    return LabelErrors(_ranked(suspicious, quality), quality, suggested, float(expected.sum()))


def _of_labels(probabilities: Floats, given: NDArray[np.bool_]) -> LabelErrors:
    """Each label is a question of two classes: it is there, or not."""
    wrong, quality, expected = np.zeros_like(given), np.ones(given.shape), 0.0
    for label in range(given.shape[1]):
        has = probabilities[:, label]
        found = _of_classes(np.stack([1 - has, has], axis=1), given[:, label].astype(np.int64))
        wrong[found.order, label] = True
        quality[:, label] = found.quality
        expected += found.num_expected
    worst = quality.min(axis=1, initial=1.0)
    return LabelErrors(_ranked(np.asarray(wrong.any(axis=1)), worst), worst, given ^ wrong, expected)


def _ranked(suspicious: NDArray[np.bool_], quality: Floats) -> NDArray[np.int64]:
    found = np.flatnonzero(suspicious)
    return found[np.argsort(quality[found], kind="stable")]
