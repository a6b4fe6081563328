"""Schedules that go up and down; two of them move momentum against the rate."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

from kiln.optim.schedules.rates import Rates, Schedule, Steps, require, within


def cosine_restarts(total_steps: int, *, period: Steps, multiplier: int = 1, min_fraction: float = 0.0) -> Schedule:
    """Half cosines from 1 towards `min_fraction`, each `multiplier` times as long as the one before.

    As torch's CosineAnnealingWarmRestarts. Source: Loshchilov and Hutter 2017, arXiv:1608.03983.
    """
    within(total_steps, period=period)
    require(multiplier >= 1, "multiplier", multiplier, "a whole number >= 1")

    def factor(step: int) -> float:
        length, place = period, step
        if multiplier == 1:
            place = step % period
        while place >= length:
            place -= length
            length *= multiplier
        return min_fraction + (1.0 - min_fraction) * 0.5 * (1.0 + math.cos(math.pi * place / length))

    return factor


def cyclic(
    total_steps: int,
    *,
    up: Steps | None = None,
    down: Steps | None = None,
    mode: Literal["triangular", "triangular2", "exp_range"] = "triangular",
    gamma: float | None = None,
    min_fraction: float = 0.1,
    momentum: tuple[float, float] | None = (0.8, 0.9),
) -> Schedule:
    """Triangles between `min_fraction` and 1; momentum moves the other way. As torch's CyclicLR.

    Source: Smith 2017, arXiv:1506.01186.

    Args:
        total_steps: how many steps the schedule has.
        up: steps from the lowest to the highest rate; a tenth of all without them, which makes five cycles.
        down: steps back; `up` without them.
        mode: triangles as they are, each half as high as the one before (triangular2), or gamma ** step as high.
        gamma: for exp_range.
        min_fraction: lowest rate as share of the base rate, > 0 because every cycle starts there.
        momentum: lowest, at the highest rate, and highest; None leaves it alone.
    """
    up = max(1, math.ceil(total_steps / 10)) if up is None else up
    within(total_steps, up=up, down=down)
    require(min_fraction > 0, "min_fraction", min_fraction, "a number > 0: the first step has this rate")
    _require_momentum(momentum)
    heights: dict[str, Callable[[int, int], float]] = {
        "triangular": lambda cycle, step: 1.0,  # noqa: ARG005
        "triangular2": lambda cycle, step: 0.5**cycle,  # noqa: ARG005
        "exp_range": lambda cycle, step: (gamma or 1.0) ** step,  # noqa: ARG005
    }
    require(mode in heights, "mode", mode, " or ".join(heights))
    if mode == "exp_range":
        require(gamma is not None and gamma > 0, "gamma", gamma, "a number > 0 for mode exp_range, such as 0.999")
    else:
        require(gamma is None, "gamma", gamma, f"mode = exp_range with it; it has no effect with {mode}")
    whole = up + (down or up)

    def rates(step: int) -> Rates:
        cycle, place = divmod(step, whole)
        rise = place / up if place <= up else (whole - place) / (whole - up)
        height = rise * heights[mode](cycle, step)
        lr = min_fraction + (1.0 - min_fraction) * height
        return Rates(lr, None if momentum is None else momentum[1] - (momentum[1] - momentum[0]) * height)

    return rates


def one_cycle(
    total_steps: int,
    *,
    pct_start: float = 0.3,
    anneal: Literal["cos", "linear"] = "cos",
    momentum: tuple[float, float] | None = (0.85, 0.95),
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
    three_phase: bool = False,
) -> Schedule:
    """One cycle: from 1 / div_factor up to 1 and far down; momentum moves the other way. As torch's OneCycleLR.

    Source: Smith and Topin 2018, arXiv:1708.07120. The base rate is torch's `max_lr`.

    Args:
        total_steps: how many steps the schedule has.
        pct_start: share of the steps, 0 to 1, that the rise takes.
        anneal: shape of each phase.
        momentum: lowest, at the highest rate, and highest; None leaves it alone.
        div_factor: the first rate is this many times smaller than the base rate.
        final_div_factor: the last rate is this many times smaller than the first.
        three_phase: go down as long as up, and then to the last rate.
    """
    require(0 <= pct_start <= (0.5 if three_phase else 1), "pct_start", pct_start, "0 to 1, 0.5 with three_phase")
    require(anneal in ("cos", "linear"), "anneal", anneal, "cos or linear")
    require(div_factor > 0 and final_div_factor > 0, "div_factor", (div_factor, final_div_factor), "numbers > 0")
    _require_momentum(momentum)
    first, last, peak = 1.0 / div_factor, max(total_steps - 1, 1), pct_start * total_steps - 1
    low, high = momentum or (0.0, 0.0)
    final = first / final_div_factor
    # (last step, rates there, momentum there)
    ends = [(0.0, first, high), (peak, 1.0, low)]
    ends += [(2 * peak, first, high)] if three_phase else []
    ends += [(float(last), final, high)]

    def rates(step: int) -> Rates:
        step = min(step, last)
        number = next(number for number, (end, _, _) in enumerate(ends) if number and (step <= end or end == last))
        (begin, start_lr, start_momentum), (end, end_lr, end_momentum) = ends[number - 1], ends[number]
        share = (step - begin) / (end - begin) if end > begin else 1.0
        left = (1.0 + math.cos(math.pi * share)) / 2.0 if anneal == "cos" else 1.0 - share
        lr = end_lr + (start_lr - end_lr) * left
        return Rates(lr, None if momentum is None else end_momentum + (start_momentum - end_momentum) * left)

    return rates


def _require_momentum(momentum: tuple[float, float] | None) -> None:
    if momentum is not None:
        low, high = momentum
        require(0 <= low <= high < 1, "momentum", list(momentum), "the lower and the higher one, from 0 to below 1")
