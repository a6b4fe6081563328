"""`kiln models`: list the models there are, or describe one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from kiln.cli.app import Json, run_command
from kiln.cli.terminal import say, say_json, table
from kiln.language import tr, word
from kiln.language.width import padded, width
from kiln.names import load_object

_WILD = "*?["


def run(arguments: Sequence[str]) -> None:
    """Run the verb on its arguments."""
    run_command(models, arguments, verb="models")


def models(
    pattern: Annotated[
        str | None,
        typer.Argument(help="A pattern ('resnet*') to list, or one name to describe.", metavar="PATTERN|NAME"),
    ] = None,
    pretrained: Annotated[
        bool, typer.Option("--pretrained", help="List only those with weights to start from.")
    ] = False,
    img_size: Annotated[
        int | None, typer.Option("--img-size", help="Describe at this image side.", metavar="PX", min=1)
    ] = None,
    num_classes: Annotated[
        int, typer.Option("--num-classes", help="Describe with this many classes.", metavar="N", min=1)
    ] = 1000,
    channels: Annotated[
        int, typer.Option("--channels", help="Describe with this many channels.", metavar="N", min=1)
    ] = 3,
    json: Json = False,
) -> None:
    """List the models whose name fits a pattern, or describe one: layers, shapes, parameters, FLOPs, memory."""
    listed = load_object("kiln.jobs.models:list_models")(pattern or "*", pretrained=pretrained)
    one = pattern is not None and not any(character in pattern for character in _WILD)
    if one and (not listed or any(row.get("name") == pattern for row in listed)):
        describe = load_object("kiln.jobs.models:describe_model")
        described = describe(pattern, img_size=img_size, num_classes=num_classes, channels=channels)
        say_json(described) if json else _tell_one(described)
        return
    if json:
        say_json({"count": len(listed), "models": listed})
        return
    columns = list(dict.fromkeys(key for row in listed for key in row))
    if columns:
        table(columns, [[_joined(row.get(column), ", ") for column in columns] for row in listed])
    say(tr("{count:,} models", count=len(listed)) if listed else tr("no model fits {pattern!r}", pattern=pattern))
    if listed:
        say(tr("next   {command}", command=f"kiln models {listed[0]['name']}"))


def _tell_one(described: Mapping[str, Any]) -> None:
    """The layers as a table, then everything else as lines."""
    tables = {
        key: value
        for key, value in described.items()
        if isinstance(value, list) and value and isinstance(value[0], Mapping)
    }
    for rows in tables.values():
        columns = list(dict.fromkeys(key for row in rows for key in row))
        table(columns, [[_joined(row.get(column)) for column in columns] for row in rows])
        say()
    lines = {key: value for key, value in described.items() if key not in tables}
    names = {key: word(key.replace("_bytes", "_memory").replace("_", " ")) for key in lines}
    most = max(map(width, names.values()), default=0)
    for key, value in lines.items():
        say(f"{padded(names[key], most)}  {_counted(key, value)}")
    say(tr("next   {command}", command=f"kiln train DATA --model {described.get('name', 'NAME')}"))


def _counted(key: str, value: Any) -> Any:
    """A value with its unit, large numbers as people say them."""
    if not isinstance(value, int):
        return _joined(value, ", ")
    if key.endswith("_bytes"):
        return f"{value / 2**20:,.1f} MiB"
    for size, letter in ((10**9, "G"), (10**6, "M")):
        if value >= size:
            return f"{value / size:,.2f} {letter}"
    return f"{value:,}"


def _joined(value: Any, separator: str = " x ") -> Any:
    return separator.join(map(str, value)) if isinstance(value, (list, tuple)) else value
