"""`kiln schedule`: draw how the learning rate will move."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from kiln.cli.app import Json, run_command
from kiln.cli.terminal import note, say, say_json, table
from kiln.errors import UsageError
from kiln.language import tr
from kiln.names import SCHEDULES, load_object
from kiln.recipe.recipe import parse_changes


def run(arguments: Sequence[str]) -> None:
    """Run the verb on its arguments."""
    run_command(schedule, arguments, verb="schedule")


def schedule(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Schedules: cosine, 'step(every=30%)', mine.py:decay; none lists them.", metavar="NAME..."),
    ] = None,
    epochs: Annotated[float, typer.Option("--epochs", help="Length of the training.", metavar="N")] = 10,
    steps_per_epoch: Annotated[
        int, typer.Option("--steps-per-epoch", help="Optimizer steps in an epoch.", metavar="N", min=1)
    ] = 100,
    steps: Annotated[
        int | None, typer.Option("--steps", help="Length in optimizer steps, instead of epochs.", metavar="N", min=1)
    ] = None,
    lr: Annotated[
        float | None, typer.Option("--lr", help="Peak rate; without it, shares of the peak are drawn.", metavar="RATE")
    ] = None,
    warmup: Annotated[
        str | None, typer.Option("--warmup", help="Way up to the peak, such as 5ep or 10%.", metavar="DURATION")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="A field of the section schedule; may be repeated.", metavar="schedule.FIELD=VALUE"),
    ] = None,
    output: Annotated[str | None, typer.Option("--output", help="Write a picture too, .png.", metavar="FILE")] = None,
    json: Json = False,
) -> None:
    """Draw how schedules move the learning rate, in the terminal and as a picture. Nothing is trained."""
    if not names:
        say_json({"schedules": list(SCHEDULES)}) if json else say("\n".join(SCHEDULES))
        return
    total = steps if steps is not None else max(1, round(epochs * steps_per_epoch))
    drawn = load_object("kiln.jobs.draw_schedules:draw_schedules")(
        names, total_steps=total, steps_per_epoch=steps_per_epoch, lr=lr, changes=_changes(set_, warmup), output=output
    )
    for line in drawn.notes:
        note(line)
    if json:
        panels = [
            {"title": panel.title, "curves": [{"name": curve.name, "values": curve.values} for curve in panel.curves]}
            for panel in drawn.panels
        ]
        say_json({"steps": total, "panels": panels, "output": None if output is None else os.fspath(output)})
        return
    _tell(drawn)


def _changes(assignments: Sequence[str] | None, warmup: str | None) -> dict[str, Any]:
    changes = parse_changes(assignments or ())
    for name in changes:
        if not name.startswith("schedule."):
            what = f"--set {name}: this verb takes the section schedule only"
            raise UsageError("E101", what, hint="kiln recipe schedule lists its fields")
    return {**changes, **({} if warmup is None else {"schedule.warmup": warmup})}


def _tell(drawn: Any) -> None:
    chart_text = load_object("kiln.reports.curves:chart_text")
    panel = load_object("kiln.reports.curves:Panel")
    colored = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    width = min(shutil.get_terminal_size((78, 24)).columns, 110)
    for one in drawn.panels:
        # Without colours curves could not be told apart, so each has a chart of its own.
        alone = [
            panel(f"{one.title}: {curve.name}", [curve], [color])
            for curve, color in zip(one.curves, one.colors, strict=True)
        ]
        charts = [one] if colored and len(one.curves) > 1 else alone
        for chart in charts:
            height = 16 if len(charts) == 1 and one is drawn.panels[0] else 8
            for line in chart_text(chart, width=width, height=height, colored=colored):
                say(line)
            say()
    rows = []
    for one in drawn.panels[0].curves:
        peak = max(one.values)
        rows.append((one.name, one.values[0], peak, one.values.index(peak) + 1, one.values[-1]))
    table(("schedule", "first", "highest", "at step", "last"), rows)
    if drawn.path is not None:
        say(tr("file   {file}", file=drawn.path))
