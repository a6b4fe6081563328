"""`kiln labels`: which labels are probably wrong."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from kiln.cli.app import Json, run_command
from kiln.cli.terminal import say, say_json
from kiln.language import tr
from kiln.names import VERBS, load_object

if TYPE_CHECKING:
    from kiln.data.checks.findings import Findings

MOST_TOLD = 10


def run(arguments: Sequence[str]) -> None:
    """Run the verb on its arguments."""
    run_command(labels, arguments, verb="labels")


def labels(
    run_folder: Annotated[
        str, typer.Argument(help="Run of folds, or any run for the samples that it held out.", metavar="FOLDS_RUN")
    ],
    output: Annotated[
        str | None, typer.Option("--output", help="Folder for labels.html and labels.csv.", metavar="FOLDER")
    ] = None,
    top: Annotated[int | None, typer.Option("--top", help="The first so many alone.", metavar="N", min=1)] = None,
    suggest: Annotated[
        str,
        typer.Option("--suggest", help="What stands in the column decision: keep, or relabel.", metavar="keep|relabel"),
    ] = "keep",
    data: Annotated[
        str | None, typer.Option("--data", help="Where the pictures are now, if moved.", metavar="DATA")
    ] = None,
    json: Json = False,
) -> None:
    """Rank the samples whose given label is probably wrong, the most certain first, with the reason in words.

    "kiln train DATA --folds 5" has an answer for every sample by a model that did not train on it; any other run knows
    only the samples that it held out. With --output, labels.html shows the pictures, and labels.csv holds a decision for
    each suspect, to be edited and given to "kiln train DATA --decisions labels.csv".
    """
    found: Findings = load_object(VERBS["labels"])(run_folder, output, top=top, suggest=suggest, data=data)
    if json:
        say_json({**found.to_dict(), "output": output})
        return
    for finding in found.of("note"):
        say(tr("note   {note}", note=finding.detail))
    suspects = found.of("label_error") or found.of("label_doubt")
    shown = suspects[: len(suspects) if top is not None else MOST_TOLD]
    for finding in shown:
        say(f"{finding.keys[0]}  {finding.detail}")
    _tell_number(found, len(suspects), len(shown))
    if output is None:
        say(tr("next   kiln labels RUN --output OUT writes the pictures and the table of decisions"))
        return
    say(tr("page   {path}", path=os.path.join(output, "labels.html")))
    say(tr("table  {path}", path=os.path.join(output, "labels.csv")))


def _tell_number(found: Findings, kept: int, shown: int) -> None:
    """How many labels there are to look at, in truth, and how many of them stand above."""
    first = tr(", the first {shown} listed", shown=f"{shown:,}") if shown < kept + found.left_out else ""
    amounts = {"count": f"{kept + found.left_out:,}", "total": f"{found.num_samples:,}", "first": first}
    if found.of("label_doubt"):
        say(tr("found  labels that weak models doubt: {count} of {total}{first}", **amounts))
    else:
        say(tr("found  suspicious labels: {count} of {total}{first}", **amounts))
