"""Training longer than was asked for at first: a logged decision, and one more piece of the map from step to rate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from kiln.engine.state import State
from kiln.errors import UsageError
from kiln.optim.schedules import Rates, Schedule, as_rates, blend, constant
from kiln.recipe.duration import Duration


def extension(state: State, by: Duration, total_steps: int, steps_per_epoch: int) -> dict[str, Any]:
    """The log entry of an extension that begins where the run stands."""
    before = extended_schedule(constant(total_steps), total_steps, state.log)[0]
    more = by.to_steps(steps_per_epoch=steps_per_epoch, total_steps=before)
    state.stop_reason = None
    if state.tracker is not None and state.tracker.exhausted:
        state.tracker.evaluations_since_improvement = 0  # patience begins anew
    return {"step": state.step, "what": "extended", "from_steps": before, "to_steps": before + more}


def extended_schedule(schedule: Schedule, total_steps: int, log: Iterable[Mapping[str, Any]]) -> tuple[int, Schedule]:
    """The length and the schedule of a run with its extensions.

    What was left of the schedule when the extension was made is stretched over all steps then left, so the rate goes on
    from where it was, and momentum with it. A run that had ended goes on at its last rate.

    Raises: UsageError: the run had ended, and its last rate was 0.
    """
    for entry in log:
        if entry["what"] == "extended":
            schedule = _stretched(schedule, entry["step"], entry["from_steps"], entry["to_steps"])
            total_steps = entry["to_steps"]
    return total_steps, schedule


def _stretched(schedule: Schedule, start: int, before: int, after: int) -> Schedule:
    last = max(before - 1, 0)

    if start > last and not _moves(schedule(last)):
        raise UsageError(
            "E103",
            "the run ended at a learning rate of 0: more steps at that rate change nothing",
            hint="a new run with more epochs, or with schedule.min_lr_fraction above 0",
        )

    def rates(step: int) -> float | Rates:
        if step < start or after - start <= 1:
            return schedule(min(step, last))
        place = start + (step - start) * (last - start) / (after - 1 - start)
        low = int(place)
        share = place - low
        low, high = min(low, last), min(low + 1, last)
        return blend(schedule(low), schedule(high), share) if start <= last else schedule(last)

    return rates


def _moves(asked: float | Rates) -> bool:
    """Whether any group is trained at this point of a schedule."""
    lr = as_rates(asked).lr
    return any(lr) if isinstance(lr, tuple) else lr > 0
