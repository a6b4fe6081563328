"""The part of a command line that says a recipe: shared by the verbs that plan as `kiln train` does."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from kiln.cli.app import run_command
from kiln.cli.flags import FLAGS, Flag, canonical
from kiln.cli.terminal import note
from kiln.errors import UsageError
from kiln.names import load_object
from kiln.recipe import FIELDS, Recipe
from kiln.recipe.presets import PRESETS, preset
from kiln.recipe.recipe import parse_changes
from kiln.recipe.trust import require_trust

_Preset = Annotated[str | None, typer.Option("--preset", help="Start from a preset.", metavar="|".join(PRESETS))]
_RecipeFile = Annotated[str | None, typer.Option("--recipe", help="Read settings from a file.", metavar="FILE")]
_Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Set any field of the recipe; may be repeated.", metavar="SECTION.FIELD=VALUE"),
]


@dataclass(frozen=True)
class Said:
    """What a command line says of a recipe.

    Attributes:
        changes: fields that were named, `data.path` among them where data was given.
        preset: the preset to start from.
        file: the recipe file to read.
    """

    changes: dict[str, Any]
    preset: str | None
    file: str | None

    def recipe(self) -> Recipe:
        """The whole recipe: a preset is weaker than a file, and that than what was named.

        Raises: UsageError: a wrong preset, file or value. SecurityError: the file names code that is not trusted.
        """
        recipe = Recipe() if self.preset is None else preset(self.preset)
        if self.file is not None:
            recipe = Recipe.load(self.file, over=recipe)
        recipe = recipe.override(self.changes)
        if self.file is not None:
            require_trust(recipe, [str(value) for value in self.changes.values()], named_by=self.file)
        return recipe


def run_recipe_command(
    function: Callable[..., None], arguments: Sequence[str], *, verb: str, own: Mapping[str, bool] | None = None
) -> None:
    """Parse arguments that say a recipe, in Kiln's words or a peer's, and call a function with them.

    Args:
        function: with a signature of `recipe_parameters` and its own.
        arguments: what the user wrote.
        verb: named in messages.
        own: flags that set no field: name -> whether a value follows.
    Raises: SystemExit: as `run_command`. UsageError: as `canonical`.
    """
    rewritten = canonical(arguments, verb=verb, own=own)
    for line in rewritten.notes:
        note(line)
    run_command(function, rewritten.arguments, verb=verb)


def run_or_data(values: Mapping[str, Any], where: str | None) -> tuple[str | None, dict[str, Any]]:
    """What a verb that looks at a run, or at data, is called with: where that is, and the recipe or changes to it.

    Raises: UsageError: as `said`.
    """
    if where is not None and load_object("kiln.run:is_run")(where):
        asked = said(values, None)
        recipe = None if asked.preset is None and asked.file is None else asked.recipe()
        return where, {"recipe": recipe, "overrides": asked.changes}
    recipe = said(values, where).recipe()
    return recipe.data.path, {"recipe": recipe}


def said(values: Mapping[str, Any], data: str | None) -> Said:
    """What the parser's values say of a recipe.

    Raises: UsageError: unknown fields, wrong values, or two data sets.
    """
    changes = parse_changes(assignments(values))
    if data is not None and changes.setdefault("data.path", data) != data:
        raise UsageError("E103", f"two data sets: {data!r} and {changes['data.path']!r}", expected="one")
    return Said(changes, values["preset"], values["recipe"])


def assignments(values: Mapping[str, Any]) -> list[str]:
    """What the flags and `--set` say, as `field=value`."""
    given = [(flag.field, values[flag.parameter]) for flag in FLAGS if values.get(flag.parameter)]
    named = [f"{name}={value if isinstance(value, str) else ','.join(value)}" for name, value in given]
    return named + list(values["set_"] or ())


def parameter(name: str, annotation: Any, default: Any = None) -> inspect.Parameter:
    """One parameter of a command whose signature is made from tables."""
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def recipe_parameters(*, without: Collection[str] = ()) -> list[inspect.Parameter]:
    """The parameters that say a recipe: one per flag of the table, and preset, file and `--set`.

    Args:
        without: fields whose flags the command does not take.
    """
    return [
        *(_option(flag) for flag in FLAGS if flag.field not in without),
        parameter("preset", _Preset),
        parameter("recipe", _RecipeFile),
        parameter("set_", _Set),
    ]


def sign(command: Any, parameters: list[inspect.Parameter]) -> None:
    """Give a command the signature that the parser is to read."""
    command.__signature__ = inspect.Signature(parameters)
    command.__annotations__ = {one.name: one.annotation for one in parameters}


def _option(flag: Flag) -> inspect.Parameter:
    kind = list[str] | None if FIELDS[flag.field].is_list else str | None
    return parameter(flag.parameter, Annotated[kind, typer.Option(*flag.names, help=flag.help, metavar=flag.metavar)])
