"""Penalties: terms of a sum that keep weights or outputs small. They see no targets."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from kiln.losses.contract import LossTerms
from kiln.losses.reduction import at_least_float32, mean_per_sample


def l1_norm(parameters: Iterable[Tensor]) -> Tensor:
    """The sum of |w| over all of them: a scalar, float32 at least."""
    return _total([at_least_float32(parameter).abs().sum() for parameter in parameters])


def l2_norm_squared(parameters: Iterable[Tensor]) -> Tensor:
    """The sum of w^2 over all of them. Its gradient is 2 w: half of a weight decay of the same size (in SGD)."""
    return _total([at_least_float32(parameter).square().sum() for parameter in parameters])


def l1_outputs(outputs: Tensor) -> LossTerms:
    """|output|, averaged over each sample. `outputs` is (B, ...)."""
    return LossTerms(mean_per_sample(at_least_float32(outputs).abs()))


def l2_outputs(outputs: Tensor) -> LossTerms:
    """output^2, averaged over each sample. `outputs` is (B, ...)."""
    return LossTerms(mean_per_sample(at_least_float32(outputs).square()))


def _total(parts: list[Tensor]) -> Tensor:
    return torch.stack(parts).sum() if parts else torch.zeros(())
