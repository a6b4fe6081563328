"""`kiln resume`: go on with a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from kiln.cli.app import Json, Quiet, Trust, run_command
from kiln.cli.outcome import train_and_tell
from kiln.recipe.recipe import parse_changes


def run(arguments: Sequence[str]) -> None:
    """Run the verb on its arguments."""
    run_command(resume, arguments, verb="resume")


def resume(
    run_folder: Annotated[str, typer.Argument(help="The folder of the run.", metavar="RUN")],
    data: Annotated[
        str | None, typer.Option("--data", help="Where the same data lie now, if moved.", metavar="DATA")
    ] = None,
    extend: Annotated[str | None, typer.Option("--extend", help="Train this much longer.", metavar="DURATION")] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="Change how the work is done (data.workers, run.device ...).", metavar="FIELD=VALUE"
        ),
    ] = None,
    trust: Trust = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Go on with a run that was stopped, exactly where it stood.

    Nothing that decides the outcome can be changed, except the length by --extend; what only says how the work is
    done can.
    """
    overrides = parse_changes(changes or ()) | ({"model.trust": list(trust)} if trust else {})
    train_and_tell(data, resume=run_folder, extend=extend, overrides=overrides, quiet=quiet, json=json)
