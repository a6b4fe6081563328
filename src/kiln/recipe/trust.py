"""Code that a recipe names runs only when the user typed the name, or trusts it."""

from __future__ import annotations

from collections.abc import Collection

from kiln.errors import SecurityError
from kiln.names import OBJECT, names_code
from kiln.recipe import schedule_text
from kiln.recipe.loss_text import code_in
from kiln.recipe.recipe import Recipe

FIELDS_THAT_NAME_CODE = (
    *("model.name", "loss.name", "optim.name", "schedule.name", "task.name"),
    *("data.sampler", "data.collate", "augment.transform"),
)


def code_names(recipe: Recipe) -> dict[str, str]:
    """The user's own code in a recipe: field -> `module:name` or `path/file.py:name`."""
    named = {field: recipe[field] for field in FIELDS_THAT_NAME_CODE}
    losses = {f"loss.name[{place}]": name for place, name in enumerate(code_in(named.pop("loss.name")))}
    asked = [recipe["training.monitor"], *recipe["training.metrics"]]
    metrics = {f"training.metrics[{place}]": name for place, name in enumerate(asked) if names_code(name)}
    schedule = enumerate(schedule_text.code_in([named.pop("schedule.name"), recipe["schedule.args"]]))
    schedules = {f"schedule.name[{place}]": name for place, name in schedule}
    return {
        field.removesuffix("[0]"): name
        for field, name in {**named, **losses, **schedules, **metrics}.items()
        if name is not None and ":" in name and not name.startswith(("hf-hub:", OBJECT))
    }


def require_trust(recipe: Recipe, typed: Collection[str], *, named_by: str) -> None:
    """Hold that all code a recipe file names was typed by the user as well, or is in `model.trust`.

    Raises: SecurityError: with the name to trust.
    """
    for field, name in code_names(recipe).items():
        if name not in typed and name not in recipe.model.trust:
            raise SecurityError(
                "E701",
                f"{named_by} names code in {field}, which would run here: {name}",
                hint=f"--trust {name} if you know it",
            )
