"""Schedules that start at the base rate and go down, in the shapes that the field uses.

`min_fraction` is the rate at the end as a share of each group's base rate; torch's `eta_min` is the same rate for all.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import Literal

from kiln.optim.schedules.rates import Schedule, Steps, increasing, require, within


def constant(total_steps: int, *, factor: float = 1.0, length: Steps | None = None) -> Schedule:
    """`factor` for `length` steps (all, without one), then 1. As torch's ConstantLR."""
    require(factor >= 0, "factor", factor, "a number >= 0")
    within(total_steps, length=length)
    return lambda step: factor if length is None or step < length else 1.0


def linear(
    total_steps: int, *, start_factor: float = 1.0, min_fraction: float = 0.0, length: Steps | None = None
) -> Schedule:
    """A straight line from `start_factor` to `min_fraction`, which is kept after `length` steps. As torch's LinearLR."""
    require(start_factor >= 0, "start_factor", start_factor, "a number >= 0")
    last = _last(total_steps, length)
    return lambda step: start_factor + (min_fraction - start_factor) * min(step / last, 1.0)


def polynomial(
    total_steps: int, *, power: float = 1.0, min_fraction: float = 0.0, length: Steps | None = None
) -> Schedule:
    """(1 - progress) ** power, from 1 to `min_fraction` in `length` steps. As torch's PolynomialLR."""
    require(power > 0, "power", power, "a number > 0")
    last = _last(total_steps, length)
    return lambda step: min_fraction + (1.0 - min_fraction) * (1.0 - min(step / last, 1.0)) ** power


def cosine(
    total_steps: int, *, min_fraction: float = 0.0, length: Steps | None = None, periodic: bool = False
) -> Schedule:
    """Half a cosine from 1 at step 0 to `min_fraction`, at the last step or after `length` steps.

    Source: Loshchilov and Hutter 2017, arXiv:1608.03983, eq. 5.

    Args:
        total_steps: how many steps the schedule has.
        min_fraction: share of the base rate at the end.
        length: torch's `T_max`.
        periodic: rise again after `length`, as torch's CosineAnnealingLR does; otherwise the end is kept.
    """
    last = _last(total_steps, length)

    def factor(step: int) -> float:
        progress = step / last if periodic else min(step / last, 1.0)
        return min_fraction + (1.0 - min_fraction) * 0.5 * (1.0 + math.cos(math.pi * progress))

    return factor


def exponential(total_steps: int, *, gamma: float, every: Steps) -> Schedule:
    """gamma ** (step / every): smooth, times `gamma` per `every` steps. As torch's ExponentialLR stepped `every` steps."""
    require(gamma > 0, "gamma", gamma, "a number > 0")
    within(total_steps, every=every)
    return lambda step: gamma ** (step / every)


def step(total_steps: int, *, every: Steps, gamma: float = 0.1) -> Schedule:
    """Times `gamma` at each multiple of `every` steps. As torch's StepLR."""
    require(gamma >= 0, "gamma", gamma, "a number >= 0")
    within(total_steps, every=every)
    return lambda step: gamma ** (step // every)


def multistep(total_steps: int, *, milestones: Sequence[Steps], gamma: float = 0.1) -> Schedule:
    """Times `gamma` at each of the milestones, twice at one that stands there twice. As torch's MultiStepLR."""
    require(gamma >= 0, "gamma", gamma, "a number >= 0")
    increasing("milestones", milestones, total_steps)
    places = tuple(milestones)
    return lambda step: gamma ** bisect_right(places, step)


def inverse_sqrt(total_steps: int, *, timescale: Steps | None = None) -> Schedule:
    """sqrt(timescale / (timescale + step)): falls for ever and never ends, so its length need not be known.

    After a linear warmup of `timescale` steps this is the schedule of Vaswani et al. 2017, arXiv:1706.03762, eq. 3.

    Args:
        total_steps: how many steps the schedule has.
        timescale: steps after which the rate is 1 / sqrt(2) of the base rate; a tenth of all without one.
    """
    within(total_steps, timescale=timescale)
    scale = timescale or max(1, total_steps // 10)
    return lambda step: math.sqrt(scale / (scale + step))


def wsd(
    total_steps: int,
    *,
    decay: Steps | None = None,
    decay_shape: Literal["linear", "cosine", "sqrt"] = "sqrt",
    min_fraction: float = 0.0,
) -> Schedule:
    """Stable, then decay: 1 until the last `decay` steps, which lead down to `min_fraction` at the last step.

    With a warmup before it this is warmup-stable-decay. Source: Hu et al. 2024, arXiv:2404.06395; the shape `sqrt`,
    1 - sqrt(progress), and a fifth of the steps for the decay: Haegele et al. 2024, arXiv:2405.18392.

    Args:
        total_steps: how many steps the schedule has.
        decay: length of the decay; a fifth of all steps without one.
        decay_shape: of the decay.
        min_fraction: share of the base rate at the last step.
    """
    within(total_steps, decay=decay)
    length = min(decay or max(1, total_steps // 5), max(total_steps - 1, 1))
    fall = {
        "linear": lambda share: 1.0 - share,
        "cosine": lambda share: 0.5 * (1.0 + math.cos(math.pi * share)),
        "sqrt": lambda share: 1.0 - math.sqrt(share),
    }
    require(decay_shape in fall, "decay_shape", decay_shape, " or ".join(fall))
    begins = max(total_steps - 1 - length, 0)  # the last step that is still stable

    def factor(step: int) -> float:
        share = min(max(step - begins, 0) / length, 1.0)
        return min_fraction + (1.0 - min_fraction) * fall[decay_shape](share)

    return factor


def _last(total_steps: int, length: int | None) -> int:
    """The step at which the end is reached: the last one, or after `length` steps."""
    within(total_steps, length=length)
    return max(total_steps - 1, 1) if length is None else length
