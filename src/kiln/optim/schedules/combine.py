"""Schedules made of others, and of your own functions."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, Literal

from kiln.errors import UsageError
from kiln.optim.schedules.rates import (
    Factor,
    Maker,
    Rates,
    Schedule,
    Steps,
    increasing,
    require,
    times,
)

WarmupShape = Literal["linear", "exponential", "constant"]


def with_warmup(
    make: Callable[..., Schedule],
    total_steps: int,
    *,
    warmup_steps: int,
    shape: WarmupShape = "linear",
    start: float | None = None,
    **settings: Any,
) -> Schedule:
    """Lead up to the first rate of a schedule, then follow it over the steps that are left.

    The last step of a rising warmup has the rate that the schedule begins with, and is its first step: the two join
    without a jump. A constant warmup is a lower rate, and the schedule begins after it.

    Args:
        make: makes the schedule for a number of steps: `cosine`, or a function of your own.
        total_steps: how many steps both have together.
        warmup_steps: length of the warmup; 0 and 1 are none.
        shape: rise by equal steps (linear) or equal ratios (exponential), or do not rise (constant).
        start: first rate, as share of what the warmup leads to; 1 / warmup_steps without one, 1/3 for constant.
        **settings: for `make`.
    Raises: UsageError: a warmup that leaves nothing, or one that starts at rate 0.
    """
    if warmup_steps < 0 or (warmup_steps > 1 and warmup_steps >= total_steps):
        raise UsageError(
            "E103",
            f"a warmup of {warmup_steps} steps in a training of {total_steps}",
            expected="less than it",
            hint="a shorter warmup, such as 10%, or a longer training",
        )
    if warmup_steps < 2:
        return make(total_steps, **settings)
    rises = shape != "constant"
    low = start if start is not None else 1 / warmup_steps if rises else 1 / 3
    require(0 < low <= 1, "start", low, "a number > 0 and <= 1")
    shift = warmup_steps - 1 if rises else warmup_steps
    main = make(total_steps - shift, **settings)
    first = main(0)

    def rates(step: int) -> float | Rates:
        if step >= warmup_steps:
            return main(step - shift)
        left = 1 - step / (warmup_steps - 1)  # 1 at the first step, 0 at the last
        return times(first, low if not rises else low**left if shape == "exponential" else 1 - (1 - low) * left)

    return rates


def sequential(total_steps: int, *, pieces: Sequence[Maker], milestones: Sequence[Steps]) -> Schedule:
    """One schedule after the other, each counting from where it begins. As torch's SequentialLR.

    Args:
        total_steps: how many steps all have together.
        pieces: each is given the number of steps that it lasts and makes a schedule for them.
        milestones: where the second piece begins, the third, and so on.
    """
    increasing("milestones", milestones, total_steps)
    if len(pieces) != len(milestones) + 1:
        raise UsageError(
            "E102",
            f"{len(milestones)} milestones for {len(pieces)} pieces",
            expected="one where each but the first begins",
        )
    begins = (0, *milestones)
    ends = (*milestones, total_steps)
    made = [make(max(end - begin, 1)) for make, begin, end in zip(pieces, begins, ends, strict=True)]

    def rates(step: int) -> float | Rates:
        number = bisect_right(milestones, step)
        return made[number](step - begins[number])

    return rates


def chained(total_steps: int, *, pieces: Sequence[Maker]) -> Schedule:
    """The product of several schedules that run at the same time. As torch's ChainedScheduler."""
    require(len(pieces) > 0, "pieces", list(pieces), "at least one schedule")
    made = [make(total_steps) for make in pieces]
    return lambda step: reduce(times, (schedule(step) for schedule in made))


def lambda_(total_steps: int, *, functions: Factor | Sequence[Factor]) -> Schedule:  # noqa: ARG001 - one signature
    """Your own function of the step, or one for each group. As torch's LambdaLR."""
    if callable(functions):
        return functions
    of_groups = tuple(functions)
    return lambda step: Rates(tuple(function(step) for function in of_groups))


def multiplicative(total_steps: int, *, functions: Factor | Sequence[Factor]) -> Schedule:  # noqa: ARG001
    """The product of your function's values at steps 1 to this one, or one product for each group.

    As torch's MultiplicativeLR. A step far ahead costs as many calls as it lies ahead; they are made once.
    """
    if callable(functions):
        return _Products(functions)
    of_groups = tuple(map(_Products, functions))
    return lambda step: Rates(tuple(product(step) for product in of_groups))


class _Products:
    """Running products, kept so that a run does not multiply them anew at each step."""

    def __init__(self, function: Factor) -> None:
        self._function, self._products = function, [1.0]

    def __call__(self, step: int) -> float:
        while len(self._products) <= step:
            self._products.append(self._products[-1] * self._function(len(self._products)))
        return self._products[step]
