"""`kiln predict`: name the class of images."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from kiln.cli.app import (
    BatchSize,
    Device,
    Json,
    ModelArgument,
    Runtime,
    Trust,
    Views,
    Workers,
    flags_from_keys,
    run_command,
)
from kiln.cli.terminal import note, say, say_json, table
from kiln.errors import UsageError
from kiln.language import tr
from kiln.names import VERBS, load_object

KEYS = {
    "model": "", "source": "", "data": "", "batch": "--batch-size", "device": "--device", "top-k": "--top-k",
    "output": "--output", "runtime": "--runtime", "workers": "--workers", "tta": "--tta",
}  # fmt: skip
FORMATS = ("csv", "json", "parquet")
MOST_ROWS_SHOWN = 50


def run(arguments: Sequence[str]) -> None:
    """Run the verb on its arguments."""
    run_command(predict, flags_from_keys(arguments, KEYS), verb="predict")


def predict(
    model: ModelArgument,
    inputs: Annotated[
        list[str], typer.Argument(help="Images, folders, globs, tables or archives.", metavar="INPUTS...")
    ],
    output: Annotated[
        str | None,
        typer.Option("--output", help="Write the predictions there: .csv, .json or .parquet.", metavar="FILE"),
    ] = None,
    format_: Annotated[
        str | None,
        typer.Option("--format", help="Form of the output, if its name does not say.", metavar="csv|json|parquet"),
    ] = None,
    top_k: Annotated[int, typer.Option("--top-k", help="Classes to name per image.", metavar="K", min=1)] = 1,
    batch_size: BatchSize = None,
    workers: Workers = None,
    device: Device = "auto",
    runtime: Runtime = "auto",
    trust: Trust = None,
    tta: Views = "none",
    json: Json = False,
) -> None:
    """Name the class of images: one row per input, unreadable files as rows with the reason."""
    if format_ is not None and format_ not in FORMATS:
        raise UsageError("E101", f"unknown format {format_!r}", got=format_, choices=FORMATS)
    rows = load_object(VERBS["predict"])(
        model, inputs if len(inputs) > 1 else inputs[0], top_k=top_k, batch_size=batch_size, workers=workers,
        device=device, runtime=runtime, trust=tuple(trust or ()), tta=tta, output=output, format=format_, tell=note,
    )  # fmt: skip
    unreadable = sum(1 for row in rows if row.get("error"))
    refused = sum(1 for row in rows if row.get("refused"))
    if json:
        say_json(
            {"count": len(rows), "unreadable": unreadable, "refused": refused, "output": output, "predictions": rows}
        )
        return
    if output is None:
        _tell(rows)
    bad = tr(", {count:,} of them unreadable", count=unreadable) if unreadable else ""
    withheld = tr(", {count:,} not answered", count=refused) if refused else ""
    say(tr("images {count:,}{bad}{withheld}", count=len(rows), bad=bad, withheld=withheld))
    if output:
        say(tr("file   {file}", file=output))
    else:
        say(tr("next   {command}", command=f"kiln predict {shlex.quote(model)} INPUTS --output predictions.csv"))


def _tell(rows: Sequence[Mapping[str, Any]]) -> None:
    """A table on the screen; all rows where the output goes to a file or another program."""
    shown = rows[:MOST_ROWS_SHOWN] if sys.stdout.isatty() else rows
    present = [
        key
        for key in dict.fromkeys(key for row in shown for key in row)
        if key != "unfamiliarity" and any(row.get(key) is not None for row in shown)
    ]
    columns = sorted(present, key=lambda name: name == "error")  # the reason last: it is long
    if columns:
        table(columns, [[_shown(row.get(column)) for column in columns] for row in shown])
    if len(shown) < len(rows):
        say(tr("... {count:,} further rows: --output FILE keeps them all", count=len(rows) - len(shown)))


def _shown(value: Any) -> Any:
    if value == "":
        return tr("(none)")  # of many labels an image may have no one
    if isinstance(value, (list, tuple)):
        return ", ".join(_pair(item) if isinstance(item, (list, tuple)) else str(item) for item in value)
    if isinstance(value, float):
        return f"{value:.4f}"
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _pair(item: Sequence[Any]) -> str:
    return " ".join(f"{part:.4f}" if isinstance(part, float) else str(part) for part in item)
