"""Checks of the numbers that losses are made with. Each gives the number back."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from kiln.errors import UsageError


def share(name: str, value: float) -> float:
    """Raises: UsageError: not in [0, 1)."""
    if not 0.0 <= value < 1.0:
        raise UsageError("E102", f"{name} = {value}", expected=f"0 <= {name} < 1; 0.1 is usual")
    return float(value)


def within_one(name: str, value: float) -> float:
    """Raises: UsageError: not in [0, 1]."""
    if not 0.0 <= value <= 1.0:
        raise UsageError("E102", f"{name} = {value}", expected=f"0 <= {name} <= 1")
    return float(value)


def not_negative(name: str, value: float) -> float:
    """Raises: UsageError: negative or not finite."""
    if not value >= 0 or not math.isfinite(value):
        raise UsageError("E102", f"{name} = {value}", expected="a finite number >= 0")
    return float(value)


def positive(name: str, value: float) -> float:
    """Raises: UsageError: not above 0, or not finite."""
    if not value > 0 or not math.isfinite(value):
        raise UsageError("E102", f"{name} = {value}", expected="a finite number > 0")
    return float(value)


def vector(name: str, values: Tensor | Sequence[float] | None) -> Tensor | None:
    """Raises: UsageError: not one finite number >= 0 for each class."""
    if values is None:
        return None
    made = torch.as_tensor(values)
    made = made if made.is_floating_point() else made.float()
    if made.ndim != 1 or not bool(torch.isfinite(made).all()) or bool((made < 0).any()):
        raise UsageError("E102", f"{name} = {values}", expected="one finite number >= 0 for each class")
    return made
