"""`kiln show`: a contact sheet of what a model sees in training."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from kiln.cli.app import Json
from kiln.cli.recipe_arguments import parameter, recipe_parameters, run_or_data, run_recipe_command, sign
from kiln.cli.terminal import note, say, say_json
from kiln.language import tr
from kiln.names import VERBS, load_object

OWN = {"--step": True, "--count": True, "--font": True}
NOT_TAKEN = ("run.output", "run.name", "run.strategy", "run.processes")
"""Fields of a run folder, which is not made, and of processes, which see parts of the same batch."""


def run(arguments: Sequence[str]) -> None:
    """Run the verb on its arguments."""
    run_recipe_command(show, arguments, verb="show", own=OWN)


def show(**values: Any) -> None:
    """Write a contact sheet of what a model sees: each image as it is, and as training is given it.

    Of a run it is the very batch of a step, made again; of data the batch that "kiln train" with the same flags would
    begin with. Nothing is trained and no run folder is made.
    """
    own = {"step": values["step"], "count": values["count"], "output": values["output"], "font": values["font"]}
    data, asked = run_or_data(values, values["data"])
    shown = load_object(VERBS["show"])(data, **asked, **own)
    for line in shown.notes:
        note(line)
    if values["json"]:
        say_json({**vars(shown), "path": os.fspath(shown.path)})
        return
    told = "step   {step:,}, in epoch {epoch:,}: {count:,} of its {batch_size:,} images"
    say(tr(told, step=shown.step, epoch=shown.epoch, count=len(shown.keys), batch_size=shown.batch_size))
    say(tr("file   {file}", file=shown.path))


_Data = Annotated[str | None, typer.Argument(help="A run, or labelled images as for train.", metavar="DATA|RUN")]
_Step = Annotated[
    int | None,
    typer.Option(
        "--step", help="Which step's batch, from 1 as in metrics.jsonl; a run's last, else the first.", metavar="N"
    ),
]
_Count = Annotated[int, typer.Option("--count", help="Images to show, at most those of the batch.", metavar="N")]
_Output = Annotated[
    str | None, typer.Option("--output", help="The picture, .png or .jpg. [NAME-stepNNNNNN.png]", metavar="FILE")
]
_Font = Annotated[
    str | None,
    typer.Option("--font", help="TrueType font, for names that the built-in one cannot show.", metavar="FILE"),
]

sign(
    show,
    [
        parameter("data", _Data),
        parameter("step", _Step),
        parameter("count", _Count, default=16),
        parameter("output", _Output),
        parameter("font", _Font),
        *recipe_parameters(without=NOT_TAKEN),
        parameter("json", Json, default=False),
    ],
)
