"""`kiln soup`: average the weights of several models into one."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Annotated

import typer

from kiln.cli.app import Device, Json, Trust, flags_from_keys, run_command
from kiln.cli.ensemble import KEYS, Data, Measure, Models, Output, metric_cells, metric_columns, tell_gain
from kiln.cli.terminal import note, say, say_json, table
from kiln.language import tr
from kiln.names import VERBS, load_object


def run(arguments: Sequence[str]) -> None:
    """Run the verb on its arguments."""
    run_command(soup, flags_from_keys(arguments, {**KEYS, "method": "--method"}), verb="soup")


def soup(
    models: Models,
    output: Output = None,
    method: Annotated[
        str, typer.Option("--method", help="What to take in: greedy (what helps) or uniform (all).", metavar="NAME")
    ] = "greedy",
    data: Data = None,
    metric: Measure = None,
    device: Device = "auto",
    trust: Trust = None,
    json: Json = False,
) -> None:
    """Average the weights of several models that were fine-tuned from one start; the result costs no more than one."""
    found = load_object(VERBS["soup"])(
        *models, output=output, method=method, data=data, metric=metric, device=device, trust=tuple(trust or ())
    )
    for line in found["notes"]:
        note(line)
    if json:
        say_json(found)
        return
    rows = [[one["model"], one["taken"], *metric_cells(one, found["metric"])] for one in found["members"]]
    table([tr("member"), tr("taken"), *metric_columns(found)], rows)
    tell_gain(found)
    say(tr("model  {path}", path=found["model"]))
    say(tr("next   {command}", command=f"kiln predict {shlex.quote(found['model'])} IMAGES"))
