"""Losses of numbers, as pure functions, averaged over all that a sample has."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from kiln.losses.contract import LossTerms
from kiln.losses.reduction import at_least_float32, check_same_shape, mean_per_sample


def mse(outputs: Tensor, targets: Tensor) -> LossTerms:
    """Squared error.

    Args:
        outputs: (B, ...).
        targets: the same shape.
    Raises: UsageError: the shapes differ.
    """
    return LossTerms(mean_per_sample(_differences(outputs, targets).square()))


def mae(outputs: Tensor, targets: Tensor) -> LossTerms:
    """Absolute error; shapes as for `mse`."""
    return LossTerms(mean_per_sample(_differences(outputs, targets).abs()))


def huber(outputs: Tensor, targets: Tensor, *, delta: float = 1.0) -> LossTerms:
    """Half the squared error up to `delta`, and beyond it the absolute error: delta (|d| - delta / 2).

    Source: Huber 1964, doi:10.1214/aoms/1177703732. Shapes as for `mse`.
    """
    check_same_shape(outputs, targets)
    outputs = at_least_float32(outputs)
    return LossTerms(mean_per_sample(F.huber_loss(outputs, targets.to(outputs.dtype), reduction="none", delta=delta)))


def _differences(outputs: Tensor, targets: Tensor) -> Tensor:
    check_same_shape(outputs, targets)
    outputs = at_least_float32(outputs)
    return outputs - targets.to(outputs.dtype)
