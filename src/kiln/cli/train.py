"""`kiln train`: the arguments become a recipe, the recipe becomes a run."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from kiln.cli.app import Json, Quiet, run_command
from kiln.cli.flags import FLAGS, Flag, canonical
from kiln.cli.outcome import train_and_tell
from kiln.cli.terminal import note
from kiln.errors import UsageError
from kiln.recipe import FIELDS, Recipe
from kiln.recipe.presets import PRESETS, preset
from kiln.recipe.recipe import parse_changes
from kiln.recipe.trust import require_trust


def run(arguments: Sequence[str]) -> None:
    """Run the verb on its arguments."""
    rewritten = canonical(arguments)
    for line in rewritten.notes:
        note(line)
    run_command(train, rewritten.arguments, verb="train")


def train(**values: Any) -> None:
    """Learn to tell the classes of labelled images apart.

    DATA is a folder (CLASS/*.jpg, or train/CLASS/*.jpg with val and test beside it), a table of image paths and
    labels, or a zip or tar of either. A preset is weaker than a recipe file, and that than flags; of flags that name
    the same field the last counts. "kiln recipe" shows every field; each can be set by --set section.field=value.
    """
    changes = parse_changes(assignments(values))
    if values["data"] is not None and changes.setdefault("data.path", values["data"]) != values["data"]:
        raise UsageError("E103", f"two data sets: {values['data']!r} and {changes['data.path']!r}", expected="one")
    resume = "auto" if values["resume"] in ("true", "True") else values["resume"]
    settings = {"resume": resume, "extend": values["extend"], "quiet": values["quiet"], "json": values["json"]}
    if resume not in (None, "auto") and values["preset"] is None and values["recipe"] is None:
        train_and_tell(changes.pop("data.path", None), overrides=changes, **settings)  # the run knows its recipe
        return
    recipe = Recipe() if values["preset"] is None else preset(values["preset"])
    if values["recipe"] is not None:
        recipe = Recipe.load(values["recipe"], over=recipe)
    recipe = recipe.override(changes)
    if values["recipe"] is not None:
        require_trust(recipe, [str(value) for value in changes.values()], named_by=values["recipe"])
    said = {} if resume is None else changes  # a run that is resumed is compared with what was said, defaults too
    train_and_tell(recipe.data.path, recipe=recipe, overrides=said, **settings)


def assignments(values: Mapping[str, Any]) -> list[str]:
    """What the flags and `--set` say, as `field=value`."""
    given = [(flag.field, values[flag.parameter]) for flag in FLAGS if values[flag.parameter]]
    said = [f"{name}={value if isinstance(value, str) else ','.join(value)}" for name, value in given]
    return said + list(values["set_"] or ())


def _option(flag: Flag) -> inspect.Parameter:
    kind = list[str] | None if FIELDS[flag.field].is_list else str | None
    return _parameter(flag.parameter, Annotated[kind, typer.Option(*flag.names, help=flag.help, metavar=flag.metavar)])


_Data = Annotated[str | None, typer.Argument(help="Folder, table or archive of labelled images.", metavar="DATA")]
_Preset = Annotated[str | None, typer.Option("--preset", help="Start from a preset.", metavar="|".join(PRESETS))]
_RecipeFile = Annotated[str | None, typer.Option("--recipe", help="Read settings from a file.", metavar="FILE")]
_Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Set any field of the recipe; may be repeated.", metavar="SECTION.FIELD=VALUE"),
]
_Resume = Annotated[
    str | None,
    typer.Option("--resume", help="Go on with a run: its folder, or auto for the newest.", metavar="auto|RUN"),
]
_Extend = Annotated[
    str | None, typer.Option("--extend", help="With --resume: train this much longer.", metavar="DURATION")
]


def _parameter(name: str, annotation: Any, default: Any = None) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _parameters() -> list[inspect.Parameter]:
    """The signature that the parser reads: one parameter per flag of the table, and those of the command itself."""
    return [
        _parameter("data", _Data),
        *(_option(flag) for flag in FLAGS),
        _parameter("preset", _Preset),
        _parameter("recipe", _RecipeFile),
        _parameter("set_", _Set),
        _parameter("resume", _Resume),
        _parameter("extend", _Extend),
        _parameter("quiet", Quiet, default=False),
        _parameter("json", Json, default=False),
    ]


train.__signature__ = inspect.Signature(_parameters())  # pyright: ignore[reportFunctionMemberAccess] (read by inspect)
train.__annotations__ = {parameter.name: parameter.annotation for parameter in _parameters()}
