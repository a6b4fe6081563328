"""`kiln bench data`: how fast each stage of the data path is, and where the wall is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any

import typer

from kiln.cli.app import Json
from kiln.cli.recipe_arguments import parameter, recipe_parameters, run_recipe_command, said, sign
from kiln.cli.terminal import note, say, say_json, table
from kiln.errors import UsageError
from kiln.language import tr, word
from kiln.language.patterns import translated
from kiln.language.width import label
from kiln.names import VERBS, load_object

SUBJECTS = {"data": "the stages from a file's bytes to a batch on the device"}
OWN = {"--seconds": True, "--model-step": False}
NOT_TAKEN = ("run.output", "run.name", "run.strategy", "run.processes")


def run(arguments: Sequence[str]) -> None:
    """Run the verb on its arguments: the first says what is measured."""
    subject = arguments[0] if arguments else "--help"
    if subject in ("-h", "--help"):
        say(overview())
        return
    if subject not in SUBJECTS:
        hint = f"kiln bench data {subject}"
        raise UsageError("E101", f"unknown subject {subject!r}", got=subject, choices=tuple(SUBJECTS), hint=hint)
    run_recipe_command(bench_data, arguments[1:], verb="bench data", own=OWN)


def overview() -> str:
    """What `kiln bench --help` prints."""
    lines = "\n".join(f"  {subject:<6}{tr(what)}" for subject, what in SUBJECTS.items())
    return tr(
        "Usage: kiln bench SUBJECT [ARGUMENTS]\n\nMeasure on this machine:\n{lines}\n\nkiln bench SUBJECT --help",
        lines=lines,
    )


def bench_data(**values: Any) -> None:
    """Measure each stage from the bytes of a file to a batch on the device, tell where the wall is and what to try.

    A sample of the training images is measured, in the pixel form, crops and batches that "kiln train" with the same
    flags would use.
    """
    recipe = said(values, values["data"]).recipe()
    measured = load_object(VERBS["bench_data"])(
        recipe.data.path, recipe=recipe, seconds=values["seconds"], model_step=values["model_step"]
    )
    for line in measured.notes:
        note(line)
    if values["json"]:
        say_json(asdict(measured))
        return
    rows = []
    for stage in measured.stages:
        spread = f"{_rate(stage.rate.low)}-{_rate(stage.rate.high)}"
        threads = None if stage.device else stage.threads
        rows.append(
            (word(stage.name), threads, _rate(stage.rate.per_second), spread, tr("yes") if stage.in_plan else "")
        )
    table(("stage", "threads", "images/s", "middle half", "in the plan"), rows)
    said_of = ", ".join(f"{name} {value}" for name, value in measured.conditions.items())
    say(tr("of     {conditions}", conditions=said_of))
    say(tr("wall   {wall}", wall=translated(measured.wall.says)))
    for index, line in enumerate(measured.wall.next):
        say(f"{label('' if index else 'next')}{translated(line)}")


def _rate(per_second: float) -> str:
    return f"{per_second:,.0f}" if per_second >= 10 else f"{per_second:.2g}"


_Data = Annotated[str | None, typer.Argument(help="Labelled images as for train.", metavar="DATA")]
_Seconds = Annotated[float, typer.Option("--seconds", help="Measure for so long, about.", metavar="S")]
_ModelStep = Annotated[bool, typer.Option("--model-step", help="Measure the model's training step beside its data.")]

sign(
    bench_data,
    [
        parameter("data", _Data),
        parameter("seconds", _Seconds, default=20.0),
        parameter("model_step", _ModelStep, default=False),
        *recipe_parameters(without=NOT_TAKEN),
        parameter("json", Json, default=False),
    ],
)
