"""`kiln export`: write a model in a form that runs without PyTorch."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Annotated

import typer

from kiln.cli.app import Json, ModelArgument, Trust, flags_from_keys, run_command
from kiln.cli.terminal import say, say_json
from kiln.language import tr
from kiln.names import VERBS, load_object

KEYS = {"model": "", "format": "--format", "opset": "--opset", "output": "--output"}


def run(arguments: Sequence[str]) -> None:
    """Run the verb on its arguments."""
    run_command(export, flags_from_keys(arguments, KEYS), verb="export")


def export(
    model: ModelArgument,
    output: Annotated[
        str | None, typer.Option("--output", help="File to write; by default beside the model.", metavar="FILE")
    ] = None,
    format_: Annotated[str, typer.Option("--format", help="Form of the model: onnx.", metavar="NAME")] = "onnx",
    opset: Annotated[int | None, typer.Option("--opset", help="Version of the ONNX operators.", metavar="N")] = None,
    trust: Trust = None,
    json: Json = False,
) -> None:
    """Write a model, with its classes and its preprocessing, in a form that runs without PyTorch."""
    path = load_object(VERBS["export"])(model, output, format=format_, opset=opset, trust=tuple(trust or ()))
    if json:
        say_json({"file": str(path), "format": format_})
        return
    say(tr("file   {file}", file=path))
    say(tr("next   {command}", command=f"kiln predict {shlex.quote(str(path))} IMAGES"))
