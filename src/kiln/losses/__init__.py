"""Losses: pure functions in `functional`, thin modules here, and the contract that lets a step average them exactly."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kiln.errors import UsageError
from kiln.losses.contract import LossTerms, as_terms, is_coupled
from kiln.losses.functional import binary_cross_entropy, cross_entropy, mse

__all__ = [
    "BinaryCrossEntropy", "CrossEntropy", "LossTerms", "MeanSquaredError",
    "as_terms", "binary_cross_entropy", "cross_entropy", "is_coupled", "mse",
]  # fmt: skip

Weights = Tensor | Sequence[float] | None


class CrossEntropy(nn.Module):
    """`cross_entropy` with its settings. `class_weights` moves with `.to(device)` and is no part of the state."""

    class_weights: Tensor | None

    def __init__(self, *, smoothing: float = 0.0, class_weights: Weights = None) -> None:
        super().__init__()
        self.smoothing = _share(smoothing)
        self.register_buffer("class_weights", _vector("class_weights", class_weights), persistent=False)

    def forward(self, logits: Tensor, targets: Tensor) -> LossTerms:
        """One value per sample. `logits` is (B, K), `targets` (B,) int64 or (B, K)."""
        return cross_entropy(logits, targets, smoothing=self.smoothing, class_weights=self.class_weights)


class BinaryCrossEntropy(nn.Module):
    """`binary_cross_entropy` with its settings. `pos_weight` moves with `.to(device)` and is no part of the state."""

    pos_weight: Tensor | None

    def __init__(self, *, smoothing: float = 0.0, pos_weight: Weights = None) -> None:
        super().__init__()
        self.smoothing = _share(smoothing)
        self.register_buffer("pos_weight", _vector("pos_weight", pos_weight), persistent=False)

    def forward(self, logits: Tensor, targets: Tensor) -> LossTerms:
        """One value per sample. `logits` and `targets` are (B, K)."""
        return binary_cross_entropy(logits, targets, smoothing=self.smoothing, pos_weight=self.pos_weight)


class MeanSquaredError(nn.Module):
    """`mse` as a module."""

    def forward(self, outputs: Tensor, targets: Tensor) -> LossTerms:
        """One value per sample. `outputs` and `targets` have one shape, (B, ...)."""
        return mse(outputs, targets)


def _share(smoothing: float) -> float:
    if not 0.0 <= smoothing < 1.0:
        raise UsageError("E102", f"smoothing = {smoothing}", expected="0 <= smoothing < 1; 0.1 is usual")
    return float(smoothing)


def _vector(name: str, values: Weights) -> Tensor | None:
    if values is None:
        return None
    vector = torch.as_tensor(values)
    vector = vector if vector.is_floating_point() else vector.float()
    if vector.ndim != 1 or not bool(torch.isfinite(vector).all()) or bool((vector < 0).any()):
        raise UsageError("E102", f"{name} = {values}", expected="one finite number >= 0 for each class")
    return vector
