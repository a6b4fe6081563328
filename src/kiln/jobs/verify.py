"""`verify`: the first steps of a training, twice; are they the same bit for bit, and if not, what parts them?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch.random import fork_rng

from kiln.engine.strategy import Single
from kiln.errors import UsageError
from kiln.jobs.asked import asked_for
from kiln.jobs.assembly.assemble import Training, assemble
from kiln.jobs.assembly.resolve import Settings, resolve
from kiln.jobs.intake import Intake, take_in
from kiln.jobs.training.announce import exactness
from kiln.jobs.training.recorded import plan_of_run
from kiln.measure.repeat import Difference, StepTrace, first_difference, trace
from kiln.recipe import Recipe
from kiln.run import Run, is_run


@dataclass(frozen=True)
class Verified:
    """Whether a training repeated.

    Attributes:
        same: every batch, loss, weight and optimizer state was the same, bit for bit.
        steps: that were compared.
        difference: where the two parted.
        promised: what the plan promises, as a training says at its start.
        conditions: what was compared, by name.
        digests: of what the last step left, by name, to compare with another machine's.
    """

    same: bool
    steps: int
    difference: Difference | None
    promised: str
    conditions: dict[str, Any]
    digests: dict[str, str]


def verify(
    data: Any = None,
    *,
    steps: int = 20,
    recipe: Recipe | None = None,
    overrides: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Verified:
    """Train the first steps twice, from nothing each time, and compare step by step.

    Where the two part, they are trained up to there twice more, and every operation within that step is compared: the first
    one whose result differs is named. No run folder is made.

    Args:
        data: a run (its folder, or a `Run`), whose first steps are repeated; or data as for `kiln.train`.
        steps: to compare.
        recipe: as for `kiln.train`.
        overrides: recipe fields by their full names; of a run only those that change nothing of what comes out.
        **settings: recipe fields by their short names.
    Raises: UsageError: no data, no step, or several processes.
    """
    if steps < 1:
        raise UsageError("E102", f"steps = {steps}", expected="at least 1")
    plan, intake = _plan(data, recipe, overrides, settings)
    for name in ("run.processes", "run.strategy"):
        plan[name]  # one process, whatever trained the run
    first, training = _trained(plan, intake, steps)
    second, _ = _trained(plan, intake, steps)
    difference = first_difference(first, second)
    if difference is not None:
        difference = _looked_into(plan, intake, difference)
    return Verified(
        same=difference is None,
        steps=len(first),
        difference=difference,
        promised=exactness(training, plan),
        conditions={
            "device": plan.values["run.device"],
            "precision": plan.values["training.precision"],
            "determinism": plan.values["run.determinism"],
            "batch": plan.values["training.batch_size"],
            "model": plan.values["model.name"],
        },
        digests=first[-1].digests,
    )


def _plan(
    data: Any, recipe: Recipe | None, overrides: Mapping[str, Any] | None, settings: Mapping[str, Any]
) -> tuple[Settings, Intake]:
    if not is_run(data):
        asked = asked_for(data, recipe, overrides, settings)
        if asked.recipe.run.processes > 1 or asked.recipe.run.strategy == "ddp":
            raise UsageError("E103", "verify trains in one process", hint="leave out --processes and --strategy")
        if asked.data is None and asked.recipe.data.path is None:
            raise UsageError("E103", "no data: nothing to train on", hint="kiln verify photos/")
        intake = take_in(asked.recipe, asked.data)
        return resolve(asked.recipe, intake), intake
    run = data if isinstance(data, Run) else Run(data)
    plan, intake, _ = plan_of_run(run, asked_for(None, recipe, overrides, settings), verb="verify")
    return plan, intake


def _looked_into(plan: Settings, intake: Intake, found: Difference) -> Difference:
    """The same difference with the operation at fault, as far as it shows again."""
    traces = [_trained(plan, intake, found.step, operations_of=found.step)[0] for _ in range(2)]
    again = first_difference(*traces)
    if again is None:
        return found
    return again if again.operation is not None else replace(found, part=again.part)


def _trained(
    plan: Settings, intake: Intake, steps: int, *, operations_of: int | None = None
) -> tuple[list[StepTrace], Training]:
    """Traces of the first steps of a training that begins anew."""
    with fork_rng(devices=[]):
        training = assemble(plan, intake, Single(), begins=True)
        traces = trace(
            training.state,
            training.step,
            training.batches,
            num_steps=min(steps, training.total_steps),
            schedule=training.schedule,
            operations_of=operations_of,
        )
        return list(traces), training
