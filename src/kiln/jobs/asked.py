"""What a caller from Python asks for, as a recipe: settings by their short names, overrides by their full ones."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kiln.errors import UsageError
from kiln.names import name_of
from kiln.recipe import FIELDS, Recipe

SHORT_NAMES = {
    **{field.key: name for name, field in FIELDS.items() if field.key not in ("name", "args", "every", "path", "root")},
    "model": "model.name",
    "opt": "optim.name",
    "sched": "schedule.name",
    "opt_args": "optim.args",
    "sched_args": "schedule.args",
    "loss": "loss.name",
    "task": "task.name",
    "name": "run.name",
    "checkpoint_every": "checkpoint.every",
}

FIELDS_OF_OBJECTS = (
    "model.name",
    "loss.name",
    "optim.name",
    "schedule.name",
    "data.collate",
    "training.monitor",
    "training.metrics",
)
"""Fields that take the user's own code as an object too."""


@dataclass(frozen=True)
class Asked:
    """A recipe, the data where they are an object and no path, and the changes that were named."""

    recipe: Recipe
    data: Any
    changes: dict[str, Any]


def asked_for(
    data: Any, recipe: Recipe | None, overrides: Mapping[str, Any] | None, settings: Mapping[str, Any]
) -> Asked:
    """Bring together what a verb was given.

    Args:
        data: a path, which becomes `data.path`; or an object; or None.
        recipe: the defaults without one.
        overrides: recipe fields by their full names.
        settings: recipe fields by their short names.
    Raises: UsageError: an unknown name, a wrong value, or two data sets.
    """
    changes = {**{_full_name(name): value for name, value in settings.items()}, **(overrides or {})}
    changes = {name: _as_text(name, value) for name, value in changes.items()}
    recipe = (recipe or Recipe()).override(changes) if changes else recipe or Recipe()
    if isinstance(data, str | os.PathLike):
        recipe, data = recipe.override({"data.path": os.fspath(data)}), None
    elif data is not None and recipe.data.path is not None:
        raise UsageError("E103", f"two data sets: an object, and data.path = {recipe.data.path}", expected="one")
    return Asked(recipe, data, changes)


def _as_text(name: str, value: Any) -> Any:
    """A path, or the user's own code as an object, as the text by which a recipe names it."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if name in FIELDS_OF_OBJECTS and isinstance(value, list | tuple):
        return tuple(_as_text(name, one) for one in value)
    return name_of(value) if name in FIELDS_OF_OBJECTS and callable(value) else value


def _full_name(name: str) -> str:
    if name not in SHORT_NAMES:
        raise UsageError("E101", f"unknown setting {name!r}", got=name, choices=sorted(SHORT_NAMES))
    return SHORT_NAMES[name]
