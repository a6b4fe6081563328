"""Schedules: pure functions of the step, so that nothing has to be saved and a resume cannot drift.

A schedule maps a 0-based optimizer step to the factor of each group's base rate, set before the step is taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

Schedule = Callable[[int], float]

WARMUP_SHARE = 0.25
"""A warmup never takes more than this share of the run, however it was asked for."""


def cosine(total_steps: int, *, min_fraction: float = 0.0) -> Schedule:
    """Half a cosine from 1 at step 0 to `min_fraction` at the last step. Source: Loshchilov and Hutter 2017."""
    last = max(total_steps - 1, 1)

    def factor(step: int) -> float:
        progress = min(step / last, 1.0)
        return min_fraction + (1.0 - min_fraction) * 0.5 * (1.0 + math.cos(math.pi * progress))

    return factor


def constant(total_steps: int, *, min_fraction: float = 0.0) -> Schedule:  # noqa: ARG001 - one signature for all
    """1 at every step."""
    return lambda step: 1.0  # noqa: ARG005


def with_warmup(make: Callable[..., Schedule], total_steps: int, *, warmup_steps: int, **settings: Any) -> Schedule:
    """Rise linearly to 1 over `warmup_steps`, then follow `make` over the steps that are left.

    The first step has rate 1 / warmup_steps, never 0; the last warmup step has rate 1 and the next schedule begins
    there, so the two join without a jump. The warmup is cut to `WARMUP_SHARE` of the run.
    """
    warmup_steps = min(warmup_steps, int(total_steps * WARMUP_SHARE))
    if warmup_steps < 2:
        return make(total_steps, **settings)
    main = make(total_steps - warmup_steps + 1, **settings)

    def factor(step: int) -> float:
        return (step + 1) / warmup_steps if step < warmup_steps else main(step - warmup_steps + 1)

    return factor


def set_rates(optimizer: Any, factor: float) -> float:
    """Set every group's rate to its base rate times `factor`; returns the first group's rate."""
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("base_lr", group["lr"]) * factor
    return optimizer.param_groups[0]["lr"]
