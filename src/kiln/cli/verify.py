"""`kiln verify`: does a training repeat, bit for bit?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any

import typer

from kiln.cli.app import Json
from kiln.cli.recipe_arguments import parameter, recipe_parameters, run_or_data, run_recipe_command, sign
from kiln.cli.terminal import note, say, say_json
from kiln.errors import NumericError
from kiln.language import tr
from kiln.language.patterns import translated
from kiln.names import VERBS, load_object

OWN = {"--steps": True}
NOT_TAKEN = ("run.output", "run.name")
_RECIPE_SUFFIXES = (".yaml", ".yml")


def run(arguments: Sequence[str]) -> None:
    """Run the verb on its arguments."""
    run_recipe_command(verify, arguments, verb="verify", own=OWN)


def verify(**values: Any) -> None:
    """Train the first steps twice and compare them step by step; name the first operation that differs.

    Takes a run, labelled images as for "kiln train", or a recipe file. No run folder is made. It ends with an error
    where the two differ.
    """
    where = values["data"]
    if where is not None and where.lower().endswith(_RECIPE_SUFFIXES):
        values, where = {**values, "recipe": where}, None
    note(tr("training the first {steps:,} steps, twice", steps=values["steps"]))
    data, asked = run_or_data(values, where)
    found = load_object(VERBS["verify"])(data, steps=values["steps"], **asked)
    if values["json"]:
        say_json(asdict(found))
    else:
        _tell(found)
    if not found.same:
        raise NumericError("E603", f"the training does not repeat: {told(found.difference)}", hint=_hint(found))


def told(difference: Any) -> str:
    """Where two trainings parted, in a sentence."""
    line = f"step {difference.step} differs in its {difference.part}"
    if difference.operation is None:
        return line
    return f"{line}; the first operation to differ is number {difference.number}, {difference.operation}"


def _tell(found: Any) -> None:
    conditions = ", ".join(f"{name} {value}" for name, value in found.conditions.items())
    say(tr("of       {conditions}", conditions=conditions))
    say(tr("promise  {promise}", promise=translated(found.promised)))
    if found.same:
        told = "same     {steps:,} steps, twice: every batch, loss, weight and optimizer state, bit for bit"
        say(tr(told, steps=found.steps))
        say(tr("digest   {digest} of the weights after them", digest=found.digests["weights"]))


def _hint(found: Any) -> str:
    if found.difference.part == "batch":
        return "a transform, sampler or data set with randomness of its own; kiln show draws the batch of any step"
    if found.conditions["determinism"] != "strict" and found.conditions["device"] != "cpu":
        return "--determinism strict takes operations that repeat"
    return "code with randomness of its own, which no seed of Kiln reaches"


_Data = Annotated[
    str | None, typer.Argument(help="A run, labelled images as for train, or a recipe file.", metavar="DATA|RUN|RECIPE")
]
_Steps = Annotated[int, typer.Option("--steps", help="Steps to compare.", metavar="N")]

sign(
    verify,
    [
        parameter("data", _Data),
        parameter("steps", _Steps, default=20),
        *recipe_parameters(without=NOT_TAKEN),
        parameter("json", Json, default=False),
    ],
)
