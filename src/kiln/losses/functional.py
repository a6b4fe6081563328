"""Losses as pure functions: tensors in, one value and one weight per sample out.

Half-precision outputs are raised to float32 first; float32 and float64 stay what they are.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kiln.errors import UsageError
from kiln.losses.contract import LossTerms


def cross_entropy(
    logits: Tensor, targets: Tensor, *, smoothing: float = 0.0, class_weights: Tensor | None = None
) -> LossTerms:
    """Softmax cross entropy.

    With class weights, a sample weighs what its class weighs. For integer targets the weighted mean is then that of
    `torch.nn.functional.cross_entropy(reduction="mean")`. Differs for soft targets: a sample weighs the mean of the
    class weights under its target, so that a class index and its one-hot row give the same (torch divides by B there).

    Args:
        logits: (B, K).
        targets: (B,) int64 class indices, or (B, K) floating rows that sum to 1.
        smoothing: the share of each target that is spread evenly over all classes, 0 <= smoothing < 1.
        class_weights: (K,), >= 0.
    """
    logits = _at_least_float32(logits)
    if class_weights is None:
        return LossTerms(F.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing))
    class_weights = class_weights.to(logits.dtype)
    values = F.cross_entropy(logits, targets, weight=class_weights, reduction="none", label_smoothing=smoothing)
    weights = class_weights[targets] if targets.ndim == 1 else targets.to(logits.dtype) @ class_weights
    return LossTerms(values / torch.where(weights > 0, weights, 1.0), weights)


def binary_cross_entropy(
    logits: Tensor, targets: Tensor, *, smoothing: float = 0.0, pos_weight: Tensor | None = None
) -> LossTerms:
    """Sigmoid cross entropy of K independent yes-or-no questions, averaged over the K of each sample.

    Args:
        logits: (B, K).
        targets: (B, K), any dtype, between 0 and 1.
        smoothing: how far targets move towards one half: 1 becomes 1 - smoothing / 2, 0 becomes smoothing / 2.
        pos_weight: (K,), the factor on the positive side of each question.
    Raises: UsageError: the shapes differ.
    """
    _check_shapes(logits, targets)
    logits = _at_least_float32(logits)
    targets = targets.to(logits.dtype)
    if smoothing:
        targets = targets * (1.0 - smoothing) + 0.5 * smoothing
    values = F.binary_cross_entropy_with_logits(logits, targets, pos_weight=pos_weight, reduction="none")
    return LossTerms(_mean_per_sample(values))


def mse(outputs: Tensor, targets: Tensor) -> LossTerms:
    """Squared error, averaged over all that a sample has.

    Args:
        outputs: (B, ...).
        targets: the same shape; nothing is broadcast, because (B, 1) against (B,) would compare every pair.
    Raises: UsageError: the shapes differ.
    """
    _check_shapes(outputs, targets)
    outputs = _at_least_float32(outputs)
    return LossTerms(_mean_per_sample((outputs - targets.to(outputs.dtype)).square()))


def _at_least_float32(values: Tensor) -> Tensor:
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values


def _mean_per_sample(values: Tensor) -> Tensor:
    return values.flatten(1).mean(1) if values.ndim > 1 else values


def _check_shapes(outputs: Tensor, targets: Tensor) -> None:
    if outputs.shape != targets.shape:
        raise UsageError(
            "E107",
            f"outputs have shape {tuple(outputs.shape)}, targets {tuple(targets.shape)}",
            expected="the same shape for both",
            hint="reshape one of them, as in outputs.squeeze(1) or targets[:, None]",
        )
