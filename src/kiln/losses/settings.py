"""Checks of the numbers that losses are made with. Each gives the number back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kiln.errors import UsageError


def number(name: str, value: Any, expected: str = "a number") -> float:
    """Raises: UsageError: something else than a number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError("E102", f"{name} = {value!r}", expected=expected)
    return float(value)


def switch(name: str, value: Any) -> bool:
    """Raises: UsageError: neither true nor false; a text such as 'false' would count as true."""
    if not isinstance(value, bool):
        raise UsageError("E102", f"{name} = {value!r}", expected="true or false")
    return value


def index(name: str, value: Any) -> int | None:
    """Raises: UsageError: neither a whole number nor nothing."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise UsageError("E102", f"{name} = {value!r}", expected="a whole number, such as 255")
    return value


def share(name: str, value: float) -> float:
    """Raises: UsageError: not in [0, 1)."""
    if not 0.0 <= number(name, value) < 1.0:
        raise UsageError("E102", f"{name} = {value}", expected=f"0 <= {name} < 1; 0.1 is usual")
    return float(value)


def within_one(name: str, value: float) -> float:
    """Raises: UsageError: not in [0, 1]."""
    if not 0.0 <= number(name, value) <= 1.0:
        raise UsageError("E102", f"{name} = {value}", expected=f"0 <= {name} <= 1")
    return float(value)


def not_negative(name: str, value: float) -> float:
    """Raises: UsageError: negative or not finite."""
    if not number(name, value) >= 0 or not math.isfinite(value):
        raise UsageError("E102", f"{name} = {value}", expected="a finite number >= 0")
    return float(value)


def positive(name: str, value: float) -> float:
    """Raises: UsageError: not above 0, or not finite."""
    if not number(name, value) > 0 or not math.isfinite(value):
        raise UsageError("E102", f"{name} = {value}", expected="a finite number > 0")
    return float(value)


def vector(name: str, values: Tensor | Sequence[float] | None) -> Tensor | None:
    """Raises: UsageError: not one finite number >= 0 for each class."""
    if values is None:
        return None
    expected = "one finite number >= 0 for each class"
    try:
        made = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        hint = (
            "--set loss.class_weights=inverse or effective counts the training images"
            if isinstance(values, str)
            else ""
        )
        raise UsageError("E102", f"{name} = {values!r}", expected=expected, hint=hint) from error
    made = made if made.is_floating_point() else made.float()
    if made.numel() and not bool(made.any()):
        raise UsageError("E102", f"{name} = {values}: nothing would count", expected="some number above 0")
    if made.ndim != 1 or not bool(torch.isfinite(made).all()) or bool((made < 0).any()):
        raise UsageError("E102", f"{name} = {values}", expected=expected)
    return made
