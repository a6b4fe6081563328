"""`kiln demo`: see that all is well."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from kiln.cli.app import Json, Quiet, run_command
from kiln.cli.outcome import demo_and_tell


def run(arguments: Sequence[str]) -> None:
    """Run the verb on its arguments."""
    run_command(demo, arguments, verb="demo")


def demo(
    output: Annotated[
        str, typer.Option("--output", help="Folder that holds the run folders.", metavar="FOLDER")
    ] = "runs",
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Train on real handwritten digits, written as image files and read back the way all data are."""
    demo_and_tell(output, quiet=quiet, json=json)
