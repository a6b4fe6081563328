"""`kiln recipe`: show the settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from kiln.cli.app import Json, run_command
from kiln.cli.flags import FLAGS
from kiln.cli.terminal import say, say_json, table
from kiln.errors import UsageError
from kiln.language import tr
from kiln.recipe import FIELDS, SECTIONS, Recipe
from kiln.recipe.presets import PRESETS, preset
from kiln.recipe.recipe import meant_by
from kiln.recipe.reference import to_markdown


def run(arguments: Sequence[str]) -> None:
    """Run the verb on its arguments."""
    run_command(recipe, arguments, verb="recipe")


def recipe(
    name: Annotated[
        str | None, typer.Argument(help="A preset, a section, or a field to explain.", metavar="PRESET|SECTION|FIELD")
    ] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of recipe files.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the page of the documentation.")] = False,
    json: Json = False,
) -> None:
    """Show a preset as YAML (without a name, the defaults), explain a section or a field, or print the schema."""
    if schema:
        say_json(Recipe.schema())
    elif markdown:
        say(to_markdown().rstrip())
    elif name is None or name in PRESETS:
        shown = preset(name or "default")
        say_json(shown.to_dict()) if json else say(shown.to_yaml().rstrip())
    elif name in SECTIONS:
        fields = [field for field in FIELDS.values() if field.name.startswith(f"{name}.")]
        table(
            ("field", "default", "help"), [(field.name, shown_default(field.default), field.help) for field in fields]
        )
    elif name in FIELDS:
        _explain(name)
    else:
        choices = (*PRESETS, *SECTIONS, *FIELDS)
        raise UsageError(
            "E101", f"unknown preset, section or field {name!r}", got=meant_by(name) or name, choices=choices
        )


def _explain(name: str) -> None:
    field = FIELDS[name]
    flags = [", ".join(flag.names) for flag in FLAGS if flag.field == name]
    say(f"{name}: {field.help}")
    say(tr("  takes    {expects}", expects=field.expects))
    say(tr("  default  {default}", default=shown_default(field.default)))
    say(tr("  flag     {flag}", flag=flags[0] if flags else f"--set {name}=VALUE"))
    say(tr("  resume   may change it") if field.how else tr("  resume   keeps it"))


def shown_default(value: object) -> str:
    """A default as a recipe file would have it."""
    if value is None:
        return "null"
    return f"[{', '.join(str(item) for item in value)}]" if isinstance(value, (list, tuple)) else str(value)
