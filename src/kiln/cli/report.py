"""`kiln report`: one page about a finished run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from kiln.cli.app import Json, Trust, flags_from_keys, run_command
from kiln.cli.terminal import say, say_json
from kiln.language import tr
from kiln.names import VERBS, load_object

KEYS = {"run": "", "output": "--output", "split": "--split"}


def run(arguments: Sequence[str]) -> None:
    """Run the verb on its arguments."""
    run_command(report, flags_from_keys(arguments, KEYS), verb="report")


def report(
    run: Annotated[str, typer.Argument(help="Run folder.", metavar="RUN")],
    output: Annotated[
        str | None,
        typer.Option("--output", help="File to write; by default report.html in the run's folder.", metavar="FILE"),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            "--split", help="Part to look into: test, or val. By default test where there is one.", metavar="NAME"
        ),
    ] = None,
    saliency: Annotated[
        bool, typer.Option("--saliency/--no-saliency", help="Show where the model looked, on the mistakes shown.")
    ] = True,
    trust: Trust = None,
    json: Json = False,
) -> None:
    """Write one page that says what a run reached, where it fails, and why; --lang zh writes it in Chinese."""
    path = load_object(VERBS["report"])(run, output=output, saliency=saliency, split=split, trust=tuple(trust or ()))
    if json:
        say_json({"file": str(path), "bytes": path.stat().st_size})
        return
    say(tr("page   {page}", page=path))
