"""`kiln train`: the arguments become a recipe, the recipe becomes a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from kiln.cli.app import Json, Quiet
from kiln.cli.outcome import plan_and_tell, train_and_tell
from kiln.cli.recipe_arguments import parameter, recipe_parameters, run_recipe_command, said, sign
from kiln.errors import UsageError


def run(arguments: Sequence[str]) -> None:
    """Run the verb on its arguments."""
    run_recipe_command(train, arguments, verb="train")


def train(**values: Any) -> None:
    """Learn to tell the classes of labelled images apart.

    DATA is a folder (CLASS/*.jpg, or train/CLASS/*.jpg with val and test beside it), a table of image paths and
    labels, or a zip or tar of either. A preset is weaker than a recipe file, and that than flags; of flags that name
    the same field the last counts. "kiln recipe" shows every field; each can be set by --set section.field=value.
    """
    asked = said(values, values["data"])
    changes = asked.changes
    resume = "auto" if values["resume"] in ("true", "True") else values["resume"]
    settings = {"resume": resume, "extend": values["extend"], "quiet": values["quiet"], "json": values["json"]}
    if values["dry_run"]:
        if resume is not None or values["extend"] is not None:
            raise UsageError("E103", "--dry-run shows how a run would begin", expected="no --resume or --extend")
        plan_and_tell(asked.recipe(), quiet=values["quiet"], json=values["json"])
        return
    if resume not in (None, "auto") and asked.preset is None and asked.file is None:
        train_and_tell(changes.pop("data.path", None), overrides=changes, **settings)  # the run knows its recipe
        return
    recipe = asked.recipe()
    named = {} if resume is None else changes  # a run that is resumed is compared with what was said, defaults too
    train_and_tell(recipe.data.path, recipe=recipe, overrides=named, **settings)


_Data = Annotated[str | None, typer.Argument(help="Folder, table or archive of labelled images.", metavar="DATA")]
_Resume = Annotated[
    str | None,
    typer.Option("--resume", help="Go on with a run: its folder, or auto for the newest.", metavar="auto|RUN"),
]
_Extend = Annotated[
    str | None, typer.Option("--extend", help="With --resume: train this much longer.", metavar="DURATION")
]
_DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Say what would be done, and at which rate each weight; train nothing.")
]

sign(
    train,
    [
        parameter("data", _Data),
        *recipe_parameters(),
        parameter("resume", _Resume),
        parameter("extend", _Extend),
        parameter("dry_run", _DryRun, default=False),
        parameter("quiet", Quiet, default=False),
        parameter("json", Json, default=False),
    ],
)
