"""What a training would do, without a step of it: everything is made as for a run, told, and dropped."""

from __future__ import annotations

from typing import Any

from torch.random import fork_rng

from kiln.jobs.asked import asked_for
from kiln.jobs.assembly.assemble import assemble, make_strategy
from kiln.jobs.assembly.resolve import resolve
from kiln.jobs.intake import take_in
from kiln.jobs.training.announce import describe
from kiln.observe.progress import Progress
from kiln.optim.groups import describe_groups
from kiln.recipe import Recipe


def dry_run(data: Any = None, *, recipe: Recipe, progress: Progress) -> dict[str, Any]:
    """Settle a recipe for its data, and sort the model's parameters into the optimizer's groups.

    One process does it, however many would train; no run folder is made.

    Args:
        data: as for `train`.
        recipe: what would be done.
        progress: is told what was found and decided.
    Returns: `groups` (a row for each, as `describe_groups`; frozen parameters in one without a rate), `settings`
        (every field as it would be) and `reasons` of those that were decided, `total_steps`.
    Raises: KilnError: whatever would stop a run at its start.
    """
    asked = asked_for(data, recipe, {"run.processes": 1, "run.strategy": "single"}, {})
    intake = take_in(asked.recipe, asked.data)
    settings = resolve(asked.recipe, intake)
    with fork_rng(devices=[]):
        training = assemble(settings, intake, make_strategy(settings))
    describe(training, settings, intake, progress)
    rows = describe_groups(training.state.optimizer.param_groups)
    frozen = {name: p for name, p in training.state.model.named_parameters() if not p.requires_grad}
    if frozen:
        row = describe_groups([{"params": [*frozen.values()], "names": [*frozen], "name": "frozen", "lr": None}])[0]
        rows.append({**row, "weight_decay": None})
    return {
        "groups": rows,
        "total_steps": training.total_steps,
        "settings": settings.plain(),
        "reasons": settings.reasons,
    }
