"""Whether probabilities can be believed: squared error, calibration in bins, and the band of a calibrated model.

`sure` is what was said, a probability per answer; `right` is whether it was so. For one class per sample the answer is the
likeliest class; for labels every label of every sample is an answer, `sure` the probability that it is there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kiln import random
from kiln.metrics.intervals import LEVEL, NUM_RESAMPLES, resample_samples, wilson
from kiln.random import Purpose

Floats = NDArray[np.float64]

NUM_BINS = 15
_BUDGET = 20_000_000  # answers x simulations
_LEAST_SIMULATIONS = 100
_AT_ONCE = 2_000_000


def brier_scores(probabilities: Floats, targets: NDArray[np.int64]) -> Floats:
    """Squared distance of the probabilities (N, K) from the truth (N,), summed over classes; half of that for two classes.

    As scikit-learn's `brier_score_loss`. Source: Brier 1950, Monthly Weather Review 78. Returns: (N,).
    """
    own = probabilities[np.arange(len(targets)), targets]
    squares = np.square(probabilities).sum(axis=1) - 2 * own + 1
    return squares / 2 if probabilities.shape[1] == 2 else squares


@dataclass(frozen=True)
class Bins:
    """Answers sorted into bins of probability.

    Attributes:
        edges: (B + 1,) from 0 to 1; a bin holds what is above its lower edge, up to and with its upper one.
        place: (A,) the bin of each answer.
    """

    edges: Floats
    place: NDArray[np.int64]

    def sums(self, values: ArrayLike) -> Floats:
        """(B,) sum of one value per answer in each bin."""
        weights = np.asarray(values, np.float64)
        return np.bincount(self.place, weights, minlength=len(self.edges) - 1).astype(np.float64)


def equal_width(sure: Floats, *, num_bins: int = NUM_BINS) -> Bins:
    """Bins of one width. Source: Guo et al. 2017, arXiv:1706.04599, eq. 3."""
    return _bins(sure, np.linspace(0.0, 1.0, num_bins + 1))


def equal_mass(sure: Floats, *, num_bins: int = NUM_BINS) -> Bins:
    """Bins of as many answers each, as far as equal probabilities allow: those are never parted; fewer when there are few.

    Source: Nixon et al. 2019, arXiv:1904.01685, section 3.2.
    """
    ordered = np.sort(sure)
    ends = np.linspace(0, len(ordered), min(num_bins, len(ordered)) + 1).round().astype(np.int64)[1:-1]
    inner = np.unique(ordered[ends - 1])
    return _bins(sure, np.concatenate([[0.0], inner[(inner > 0) & (inner < 1)], [1.0]]))


def _bins(sure: Floats, edges: Floats) -> Bins:
    return Bins(edges, np.searchsorted(edges[1:-1], sure))


def calibration_error(bins: Bins, sure: Floats, right: NDArray) -> float:
    """Mean distance of what was said from what was so, over bins weighted by their answers (ECE)."""
    return float(np.abs(bins.sums(sure) - bins.sums(right)).sum() / len(sure))


def calibration_error_interval(
    bins: Bins, sure: Floats, right: NDArray, *, groups: NDArray[np.int64], seed: int = 0
) -> tuple[float, float]:
    """95 % interval of `calibration_error`, resampled by groups (of one sample each, or of several), bins as they are.

    Chance makes every ECE larger, and resampling does so once more; the interval is turned round (Davison and Hinkley 1997,
    eq. 5.6), which takes that off.

    Args:
        bins: of the answers.
        sure: (A,).
        right: (A,).
        groups: (A,) numbers from 0 of what is drawn together.
        seed: one seed, one interval.
    """
    num_groups, num_bins = int(groups.max()) + 1, len(bins.edges) - 1
    cells = groups * num_bins + bins.place
    gaps = np.bincount(cells, sure - right, minlength=num_groups * num_bins).reshape(num_groups, num_bins)
    sizes = np.bincount(groups, minlength=num_groups)

    def errors(drawn: NDArray[np.int64]) -> Floats:
        return np.abs(drawn @ gaps).sum(axis=1) / (drawn @ sizes)

    value = calibration_error(bins, sure, right)
    ends = 2 * value - np.quantile(resample_samples(num_groups, errors, seed=seed), [(1 + LEVEL) / 2, (1 - LEVEL) / 2])
    low, high = np.clip(ends, 0.0, 1.0)
    return min(float(low), value), max(float(high), value)


def calibrated_band(bins: Bins, sure: Floats, *, seed: int = 0) -> tuple[float, float]:
    """Where the ECE of a perfectly calibrated model that says the same would lie, 95 of 100 times.

    Truths are drawn from the model's own probabilities: 1,000 times, fewer (not below 100) beyond 20,000 answers.
    """
    rounds = int(np.clip(_BUDGET // len(sure), _LEAST_SIMULATIONS, NUM_RESAMPLES))
    order = np.argsort(bins.place, kind="stable")
    said, first = sure[order].astype(np.float32), np.flatnonzero(np.diff(bins.place[order], prepend=-1))
    expected = np.add.reduceat(sure[order], first)
    errors = []
    at_once = max(1, _AT_ONCE // len(sure))
    for start in range(0, rounds, at_once):
        key = random.bits(seed, Purpose.BOOTSTRAP, epoch=1, sample=start, num_draws=2)
        draws = np.random.Generator(np.random.Philox(key=key))
        happened = draws.random((min(at_once, rounds - start), len(said)), np.float32) < said
        seen = np.add.reduceat(happened, first, axis=1, dtype=np.int64)
        errors.append(np.abs(seen - expected).sum(axis=1) / len(said))
    low, high = np.quantile(np.concatenate(errors), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def reliability(sure: Floats, right: NDArray, *, seed: int = 0) -> dict[str, Any]:
    """What a reliability diagram shows, by bins of one width and of as many answers each, ready for JSON.

    Returns: `equal_width` and `equal_mass`, each with `edges` (B + 1) and, of the B bins, `count`, mean `confidence`,
        `accuracy` and its 95 % interval `low`, `high` (None in an empty bin); `ece`; `band`, as from `calibrated_band`.
    """
    return {
        "equal_width": _diagram(equal_width(sure), sure, right, seed),
        "equal_mass": _diagram(equal_mass(sure), sure, right, seed),
    }


def _diagram(bins: Bins, sure: Floats, right: NDArray, seed: int) -> dict[str, Any]:
    count, said, happened = bins.sums(np.ones(len(sure))), bins.sums(sure), bins.sums(right)
    low, high = wilson(happened, count)
    filled = np.maximum(count, 1)
    columns = {"confidence": said / filled, "accuracy": happened / filled, "low": low, "high": high}
    return {
        "edges": bins.edges.tolist(),
        "count": count.astype(np.int64).tolist(),
        **{
            name: [float(value) if there else None for value, there in zip(values, count, strict=True)]
            for name, values in columns.items()
        },
        "ece": calibration_error(bins, sure, right),
        "band": list(calibrated_band(bins, sure, seed=seed)),
    }
