"""Weights of classes from how often they occur in the training data."""

from __future__ import annotations

from collections.abc import Sequence

from kiln.errors import UsageError

WEIGHTINGS = ("inverse", "effective")


def weights_from_counts(counts: Sequence[float], how: str, *, beta: float = 0.999) -> tuple[float, ...]:
    """One weight per class; the weights of the training samples have the mean 1. A class without samples weighs 0.

    Args:
        counts: training samples of each class.
        how: `inverse`: N / (K n), which scikit-learn calls balanced. `effective`: one over the effective number of
            samples, (1 - beta) / (1 - beta^n); Cui et al. 2019, arXiv:1901.05555, eq. 6.
        beta: of `effective`, 0 <= beta < 1: 0 weighs all classes alike, towards 1 it is `inverse`.
    Raises: UsageError: another word, no samples at all, or a beta out of range.
    """
    if how not in WEIGHTINGS:
        raise UsageError("E101", f"class weights {how!r}", got=how, choices=WEIGHTINGS)
    if not 0 <= beta < 1:
        raise UsageError("E102", f"beta = {beta}", expected="0 <= beta < 1; 0.999 is usual")
    total = float(sum(counts))
    if total <= 0:
        raise UsageError("E102", f"class counts {list(counts)}", expected="some sample of some class")
    sizes = [count if how == "inverse" else (1 - beta**count) / (1 - beta) for count in counts]
    raw = [1 / size if size > 0 else 0.0 for size in sizes]
    mean = sum(weight * count for weight, count in zip(raw, counts, strict=True)) / total
    return tuple(weight / mean for weight in raw)


def positive_weights(positives: Sequence[float], total: float) -> tuple[float, ...]:
    """The weight of the positive side of each label that balances it: negatives / positives; 1 where
    there are none of either.

    Args:
        positives: training samples that have each label.
        total: training samples.
    """
    return tuple((total - count) / count if 0 < count < total else 1.0 for count in positives)
