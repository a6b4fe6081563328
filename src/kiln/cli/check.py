"""`kiln check`: what is wrong with a data set, before anything is trained on it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kiln.cli.app import Json
from kiln.cli.flags import FLAGS
from kiln.cli.recipe_arguments import parameter, recipe_parameters, run_recipe_command, said, sign
from kiln.cli.terminal import note, say, say_json, table
from kiln.errors import DataError
from kiln.language import tr, word
from kiln.language.patterns import translated
from kiln.names import VERBS, load_object

if TYPE_CHECKING:
    from kiln.data.checks.findings import Findings

TAKEN = (
    *(
        "data.root",
        "data.workers",
        "data.val_fraction",
        "data.test_fraction",
        "data.decisions",
        "task.name",
        "training.seed",
    ),
)
"""Fields that decide what is read and how it is split; the others have no effect here."""
MOST_EXAMPLES = 3


def run(arguments: Sequence[str]) -> None:
    """Run the verb on its arguments."""
    run_recipe_command(check, arguments, verb="check")


def check(**values: Any) -> None:
    """Look at every image once, and tell what would make a model or its numbers worse.

    Unreadable files, copies of one image inside and across splits, one image under two labels, shared backdrops, classes
    that are missing or small. With --output, check.html shows the pictures, and check.csv holds a decision for each
    sample, to be edited and given to --decisions. Data without splits are split as "kiln train" would.
    """
    recipe = said(values, values["data"]).recipe()
    output = values["output"]
    findings: Findings = load_object(VERBS["check"])(recipe.data.path, output=output, recipe=recipe, tell=note)
    if values["json"]:
        say_json({**findings.to_dict(), "output": output})
    else:
        _tell(findings, output)
    if not findings.usable:
        faults = [finding.detail for finding in findings.of("unusable")] or ["no image can be read"]
        raise DataError(
            "E203",
            f"{findings.where} cannot be used as it is",
            details=faults[0].splitlines(),
            hint="correct it, and check again",
        )


def _tell(findings: Findings, output: str | None) -> None:
    from kiln.data.checks.findings import KINDS

    counts = ", ".join(f"{word(name or 'all')} {count:,}" for name, count in findings.sizes.items())
    if findings.counts:
        table(
            ("finding", "cases", "severity", "what it is", "what to do"),
            [(code, count, *map(translated, KINDS[code])) for code, count in findings.counts.items()],
        )
    for code in findings.counts:
        found = findings.of(code)
        for finding in found[:MOST_EXAMPLES]:
            named = ", ".join(finding.keys[:2]) + (", ..." if len(finding.keys) > 2 else "")
            say(f"{code:<21}  {translated(finding.detail.splitlines()[0])}{f': {named}' if named else ''}")
        if len(found) > MOST_EXAMPLES:
            say(f"{code:<21}  " + tr("... {count:,} more", count=len(found) - MOST_EXAMPLES))
    told = "images {count:,} ({counts}), looked at in {seconds:.0f} s"
    say(tr(told, count=findings.num_samples, counts=counts, seconds=findings.seconds))
    if not findings.counts:
        say(tr("ok     nothing was found"))
    if output is None:
        if findings.counts:
            say(tr("next   kiln check DATA --output OUT writes the pictures and the table of decisions"))
        return
    say(tr("page   {page}", page=os.path.join(output, "check.html")))
    say(tr("table  {table}", table=os.path.join(output, "check.csv")))


_Data = Annotated[str | None, typer.Argument(help="Labelled images, as for train.", metavar="DATA")]
_Output = Annotated[str | None, typer.Option("--output", help="Folder for check.html and check.csv.", metavar="FOLDER")]
sign(
    check,
    [
        parameter("data", _Data),
        parameter("output", _Output),
        *recipe_parameters(without=[flag.field for flag in FLAGS if flag.field not in TAKEN]),
        parameter("json", Json, default=False),
    ],
)
