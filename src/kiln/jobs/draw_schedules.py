"""`schedule`: what schedules by name come to, as curves, before anything is trained."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kiln.errors import UsageError
from kiln.jobs.assembly.resolve import Settings, decide_warmup
from kiln.jobs.assembly.schedules import Clock, make_schedule
from kiln.optim.schedules import as_rates
from kiln.recipe import FIELDS, Recipe
from kiln.reports.curves import Curve, Panel, write_chart


@dataclass(frozen=True)
class Drawn:
    """What schedules come to.

    Attributes:
        total_steps: over which they are drawn.
        panels: rates, and momenta where a schedule moves them.
        path: the picture, if one was written.
        notes: what the curves do not show.
    """

    total_steps: int
    panels: list[Panel]
    path: Path | None
    notes: list[str]


def draw_schedules(
    names: Sequence[str],
    *,
    total_steps: int = 1000,
    steps_per_epoch: int = 100,
    lr: float | None = None,
    changes: Mapping[str, Any] | None = None,
    output: str | os.PathLike[str] | None = None,
) -> Drawn:
    """Compute the rate of every step for each of some schedules, and draw them as one picture.

    Args:
        names: schedules as a recipe names them: `cosine`, `step(every=30%)`, `mine.py:decay`.
        total_steps: length of the training.
        steps_per_epoch: what epochs in durations come to.
        lr: peak rate; without one, rates are shares of it.
        changes: further fields of the section `schedule`, for all of them: `{"schedule.warmup": "5ep"}`.
        output: a .png to write.
    Returns: the curves.
    Raises: UsageError: no such schedule, or settings that do not fit it.
    """
    if total_steps < 1 or steps_per_epoch < 1:
        raise UsageError("E102", f"a training of {total_steps} steps, {steps_per_epoch} an epoch", expected="1 or more")
    rates: list[Curve] = []
    momenta: list[tuple[int, Curve]] = []
    notes = []
    for name in names:
        recipe = Recipe().override({"training.epochs": f"{total_steps}steps", **(changes or {}), "schedule.name": name})
        settings = Settings({field: recipe[field] for field in FIELDS})
        decide_warmup(settings)
        schedule, plateau = make_schedule(
            settings, Clock(total_steps, steps_per_epoch, steps_per_epoch), validates=True
        )
        points = [as_rates(schedule(step)) for step in range(total_steps)]
        factors = [point.lr if isinstance(point.lr, tuple) else (point.lr,) for point in points]
        for group in range(len(factors[0])):
            label = name if len(factors[0]) == 1 else f"{name}, group {group + 1}"
            rates.append(Curve(label, [factor[group] * (lr or 1.0) for factor in factors]))
        moved = [point.momentum for point in points if point.momentum is not None]
        if len(moved) == total_steps:
            momenta.append((len(rates) - 1, Curve(name, moved)))
        if plateau is not None:
            wait = f"{plateau.patience} evaluation{'' if plateau.patience == 1 else 's'}"
            notes.append(f"{name} is times {plateau.reduce:g} after {wait} without a better metric, which is not drawn")
    title = "learning rate, as share of the peak" if lr is None else "learning rate"
    panels = [Panel(title, rates, range(len(rates)))]
    if momenta:
        panels.append(
            Panel("momentum (the first beta of Adam)", [m for _, m in momenta], [color for color, _ in momenta])
        )
    path = None if output is None else Path(output)
    if path is not None:
        write_chart(path, panels, steps_per_epoch=steps_per_epoch)
    return Drawn(total_steps, panels, path, notes)
