"""`kiln ensemble`: let several models answer together."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from kiln.cli.app import Device, Json, Trust, flags_from_keys, run_command
from kiln.cli.terminal import note, say, say_json, table
from kiln.language import tr
from kiln.names import VERBS, load_object
from kiln.observe.wording import describe_metrics, metric_value, percent

KEYS = {"output": "--output", "data": "--data", "metric": "--metric", "device": "--device"}
Models = Annotated[
    list[str], typer.Argument(help="Runs, model files, or the folder of folds.", metavar="RUN_OR_MODEL...")
]
Output = Annotated[
    str | None, typer.Option("--output", help="Where to write it; by default beside the first model.", metavar="PATH")
]
Data = Annotated[
    str | None,
    typer.Option("--data", help="Labelled images to choose on, in place of the runs' own.", metavar="DATA"),
]
Measure = Annotated[
    str | None, typer.Option("--metric", help="What to compare on validation; else the task's own.", metavar="NAME")
]


def run(arguments: Sequence[str]) -> None:
    """Run the verb on its arguments."""
    run_command(ensemble, flags_from_keys(arguments, KEYS), verb="ensemble")


def ensemble(
    models: Models,
    output: Output = None,
    data: Data = None,
    metric: Measure = None,
    link: Annotated[
        bool, typer.Option("--link", help="Give the members' files a second name, instead of copying them.")
    ] = False,
    device: Device = "auto",
    trust: Trust = None,
    json: Json = False,
) -> None:
    """Let several models answer together, weighted on validation."""
    found = load_object(VERBS["ensemble"])(
        *models, output=output, data=data, metric=metric, link=link, device=device, trust=tuple(trust or ())
    )
    for line in found["notes"]:
        note(line)
    if json:
        say_json(found)
        return
    rows = [[one["model"], percent(one["weight"]), *metric_cells(one, found["metric"])] for one in found["members"]]
    table([tr("member"), tr("weight"), *metric_columns(found)], rows)
    if found["candidates"]:
        values = {name: metric_value(found["metric"], value) for name, value in found["candidates"].items()}
        tried = ", ".join(f"{name} {value}" for name, value in values.items())
        say(tr("tried  {metric} on val: {tried}", metric=found["metric"], tried=tried))
    say(tr("kept   {name}", name=found["kept"]))
    tell_gain(found)
    say(tr("model  {path}", path=found["ensemble"]))
    say(tr("next   {command}", command=f"kiln predict {shlex.quote(found['ensemble'])} IMAGES"))


def metric_columns(found: Mapping[str, Any]) -> list[str]:
    """One column for each split that all members held out."""
    return [f"{found['metric'].replace('_', ' ')}, {split}" for split in found["metrics"]]


def metric_cells(member: Mapping[str, Any], metric: str) -> list[Any]:
    """A member's metric on each split."""
    return [metric_value(metric, metrics[metric]["value"]) for metrics in member["metrics"].values()]


def tell_gain(found: Mapping[str, Any]) -> None:
    """What was reached, and how much better than the best member that is."""
    for split, metrics in found["metrics"].items():
        say(f"{split:<6} {describe_metrics(metrics)}")
    if found["gain"] is None:
        return
    gain = {name: 100 * found["gain"][name] for name in ("value", "low", "high")}
    told = "gain   {value:+.1f} points ({low:+.1f} to {high:+.1f}) over {model} on {n:,} test images"
    say(tr(told, **gain, model=found["gain"]["over"], n=found["gain"]["n"]))
    if found["gain"]["low"] <= 0 <= found["gain"]["high"]:
        say(tr("       no difference shown"))
