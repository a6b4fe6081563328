"""Going on with a run: which one, what may be said differently this time, and what it decided when it began."""

from __future__ import annotations

import os
import shlex
from collections.abc import Collection
from pathlib import Path
from typing import Any

from kiln.data.fingerprint import compare_fingerprint
from kiln.errors import DataError, UsageError
from kiln.jobs.asked import Asked
from kiln.jobs.assembly.resolve import Settings, resolve
from kiln.jobs.intake import Intake, take_in
from kiln.jobs.training import launch
from kiln.recipe import Recipe
from kiln.recipe.trust import code_names, require_trust
from kiln.run import CHECKPOINTS, RECIPE, RESOLVED, Run, read_yaml, runs_in


def find_run(resume: str | os.PathLike[str], recipe: Recipe) -> tuple[Path | None, Path | None]:
    """The run to go on with, and the one checkpoint to go on from where that was named.

    `auto` is the run of the recipe's name, else the newest of the same recipe and data, if there is one.
    """
    if resume != "auto":
        path = Path(resume)
        if path.parent.name == CHECKPOINTS:
            return Run(path.parent.parent).path, path
        return Run(path).path, None
    output = Path(recipe.run.output)
    if recipe.run.name is not None:
        folder = output / recipe.run.name
        return (folder if (folder / RECIPE).is_file() else None), None
    return next((run.path for run in runs_in(output) if _is_same(run.recipe, recipe)), None), None


def _is_same(a: Recipe, b: Recipe) -> bool:
    places = [os.path.realpath(recipe.data.path) if recipe.data.path else None for recipe in (a, b)]
    return places[0] == places[1] and not a.differences(b).keys() - Recipe.how_fields()


GO_ON = "leave them out to go on with the run, or start a new one without --resume"


def changes_of(recorded: Recipe, given: Recipe, said: Collection[str], *, hint: str = GO_ON) -> dict[str, Any]:
    """What is said differently from a run's recipe, and may be.

    Args:
        recorded: the run's own.
        given: this time's; what is left at its default was not said.
        said: fields that were said even so, though they may have their default.
        hint: what to do when it may not.
    Raises: UsageError: something that decides what comes out differs; with the differences.
    """
    names = {".".join(name.split(".")[:2]) for name in said} | given.differences(Recipe()).keys()
    changed = {name: given[name] for name in sorted(names) if given[name] != recorded[name]}
    refused = [name for name in changed if name not in Recipe.how_fields()]
    if refused:
        raise UsageError(
            "E106",
            f"the run was started with other settings: {', '.join(refused)}",
            details=[f"{name}: the run has {recorded[name]}, now given {changed[name]}" for name in refused],
            hint=hint,
        )
    return changed


def plan_of_run(run: Run, asked: Asked, *, verb: str) -> tuple[Settings, Intake, str]:
    """What a run decided and the data that it was trained on, for a verb that looks at it and makes no run of its own.

    Args:
        run: to look at.
        asked: what the verb was given besides; only what changes nothing of what comes out.
        verb: its name, for messages.
    Returns: the plan, the data, and where these lie.
    Raises: UsageError: other settings, or data that were objects. SecurityError: it names code that is not trusted.
    """
    recorded = run.recipe
    hint = f"kiln {verb} DATA does it with other settings"
    changed = changes_of(recorded, asked.recipe, asked.changes, hint=hint)
    recipe = recorded.override(changed) if changed else recorded
    if recipe.data.path is None:
        hint = f"kiln.{verb}(data, **settings) does the same, for the settings of the run"
        raise UsageError("E103", f"{run.path} was trained on objects, which it cannot open again", hint=hint)
    require_trust(recipe, code_names(asked.recipe).values(), named_by=str(run.path / RECIPE))
    moved = f"kiln {verb} {shlex.quote(str(run.path))} --set data.path=DATA, if it lies elsewhere now"
    intake = take_in(recipe, None, moved=moved)
    return recorded_settings(run.path, recipe, intake), intake, recipe.data.path


def recorded_settings(folder: Path, recipe: Recipe, intake: Intake) -> Settings:
    """What the run decided when it began, so that nothing is measured again; how-fields are settled anew.

    Raises: DataError: the data are not those that the run began with.
    """
    fresh = resolve(recipe, intake, world_size=launch.world_size())
    if not (folder / RESOLVED).exists():
        return fresh
    resolved = read_yaml(folder / RESOLVED, kind="resolved")
    differences = compare_fingerprint(resolved["facts"]["data"], intake.source)
    if differences:
        raise DataError(
            "E208",
            "the data changed since the run began; going on would mix two data sets",
            where=intake.source.where,
            details=differences,
            hint="restore the data, or start a new run",
        )
    settings = Settings.from_plain(resolved["values"], resolved["reasons"])
    for name in Recipe.how_fields():
        settings.values[name] = fresh.values[name]
    return settings
