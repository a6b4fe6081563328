"""What a schedule asks for at a step, and how an optimizer gets it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Annotated, Any, NamedTuple

from kiln.errors import UsageError


class Rates(NamedTuple):
    """What an optimizer is set to for one step.

    Attributes:
        lr: factor of the base rate, for all groups or one for each.
        momentum: the momentum, or the first of the betas, of all groups; None leaves it alone.
    """

    lr: float | tuple[float, ...]
    momentum: float | None = None


Schedule = Callable[[int], float | Rates]
"""0-based optimizer step -> factor of the base rates, or `Rates`."""

Maker = Annotated[Callable[[int], Schedule], "maker"]
"""Number of steps -> a schedule over them, such as `cosine` or `partial(step, every=30)`."""

Factor = Annotated[Callable[[int], float], "function"]
"""0-based optimizer step -> factor, for one group."""

Steps = Annotated[int, "steps"]
"""A length in optimizer steps. A recipe writes it as a duration, such as `3ep` or `30%`."""

Evaluations = Annotated[int, "evaluations"]
"""A length in evaluations. A recipe writes it as a duration too."""


def as_rates(asked: float | Rates) -> Rates:
    """What a schedule returned, in its full form.

    Raises: UsageError: a factor that is no number, negative or not finite.
    """
    rates = asked if isinstance(asked, Rates) else Rates(asked)
    for factor in rates.lr if isinstance(rates.lr, tuple) else (rates.lr,):
        if not (isinstance(factor, Real) and 0 <= factor < math.inf):
            raise UsageError("E107", f"the schedule gives the factor {factor!r}", expected="a finite number >= 0")
    return rates


def set_rates(optimizer: Any, asked: float | Rates, *, scale: float = 1.0) -> float:
    """Set every group's rate to its base rate times what the schedule asks for; call before `optimizer.step()`.

    A group's base rate is its `base_lr`, or the rate that it has when it is first set. Where the schedule moves momentum,
    groups with `betas` get it as their first; Muon's, which have both, get both.

    Args:
        optimizer: any torch optimizer.
        asked: what a schedule returned for the step.
        scale: one more factor of all rates, such as `Plateau.factor`.
    Returns: the first group's rate.
    Raises: UsageError: a factor that is no number, negative or not finite, not as many factors as groups, or a momentum for an
        optimizer that has none.
    """
    groups = optimizer.param_groups
    lr, momentum = as_rates(asked)
    if isinstance(lr, tuple) and len(lr) != len(groups):
        expected = f"one for each of the {len(groups)} groups, or one for all"
        raise UsageError("E107", f"the schedule gives {len(lr)} factors", expected=expected)
    for group, factor in zip(groups, lr if isinstance(lr, tuple) else (lr,) * len(groups), strict=True):
        group["lr"] = group.setdefault("base_lr", group["lr"]) * float(factor) * scale
        if momentum is not None:
            _set_momentum(group, momentum)
    return groups[0]["lr"]


def _set_momentum(group: dict[str, Any], momentum: float) -> None:
    """Move each that the group has: Muon's have a momentum besides the betas of the AdamW beside it."""
    if "betas" in group:
        group["betas"] = (momentum, *group["betas"][1:])
    if "momentum" in group:
        group["momentum"] = momentum
    if not {"betas", "momentum"} & group.keys():
        what = "the schedule moves momentum, and the optimizer has neither momentum nor betas"
        raise UsageError("E103", what, hint="momentum = None (null in a recipe) leaves it alone")


def times(a: float | Rates, b: float | Rates) -> float | Rates:
    """The product of the factors of two schedules; the momentum of the later one that moves it."""
    if not isinstance(a, Rates) and not isinstance(b, Rates):
        return a * b
    (lr, momentum), (other, later) = as_rates(a), as_rates(b)
    return Rates(_each(lr, other, lambda x, y: x * y), momentum if later is None else later)


def blend(a: float | Rates, b: float | Rates, share: float) -> float | Rates:
    """What lies between two points of a schedule: `a` at share 0, `b` at share 1."""

    def between(x: float, y: float) -> float:
        return x * (1 - share) + y * share

    if not isinstance(a, Rates) and not isinstance(b, Rates):
        return between(a, b)
    (lr, momentum), (other, later) = as_rates(a), as_rates(b)
    moved = later if momentum is None or later is None else between(momentum, later)
    return Rates(_each(lr, other, between), moved)


def _each(
    a: float | tuple[float, ...], b: float | tuple[float, ...], do: Callable[[float, float], float]
) -> float | tuple[float, ...]:
    """Combine factors group by group; one number stands for all groups."""
    if isinstance(a, tuple) or isinstance(b, tuple):
        num = len(a) if isinstance(a, tuple) else len(b)  # type: ignore[arg-type]
        all_a, all_b = (x if isinstance(x, tuple) else (x,) * num for x in (a, b))
        return tuple(do(x, y) for x, y in zip(all_a, all_b, strict=True))
    return do(a, b)


def require(holds: bool, name: str, value: Any, expected: str) -> None:
    """Hold that an argument is in range.

    Raises: UsageError: it is not.
    """
    if not holds:
        raise UsageError("E102", f"{name} = {value!r}", expected=expected)


def within(total_steps: int, **lengths: int | None) -> None:
    """Hold that pieces of a schedule fit into the steps that it has; one that outlasts them would have no effect.

    Raises: UsageError: one is shorter than a step, or longer than all.
    """
    for name, steps in lengths.items():
        if steps is not None and not 1 <= steps <= max(total_steps, 1):
            raise UsageError(
                "E103",
                f"{name} = {steps} steps",
                expected=f"1 to {max(total_steps, 1)}: the schedule has no more steps than that",
            )


def increasing(name: str, milestones: Sequence[int], total_steps: int) -> None:
    """Hold that milestones rise and lie within the schedule.

    Raises: UsageError: they do not.
    """
    within(total_steps, **{f"{name}[{place}]": milestone for place, milestone in enumerate(milestones)})
    require(list(milestones) == sorted(milestones), name, list(milestones), "each later than the one before")
