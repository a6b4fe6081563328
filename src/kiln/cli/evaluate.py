"""`kiln evaluate`: measure a run or a model on labelled data."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from kiln.cli.app import (
    BatchSize,
    Device,
    Json,
    ModelArgument,
    Runtime,
    Trust,
    Views,
    Workers,
    flags_from_keys,
    run_command,
)
from kiln.cli.terminal import note, say, say_json, table
from kiln.language import tr
from kiln.names import VERBS, load_object
from kiln.observe.wording import describe_metric, percent

KEYS = {
    "model": "", "data": "", "split": "--split", "batch": "--batch-size", "batch-size": "--batch-size",
    "device": "--device", "workers": "--workers", "bad-files": "--bad-files", "runtime": "--runtime", "tta": "--tta",
}  # fmt: skip
MOST_CLASSES_SHOWN = 40
SHOWN = (
    *("accuracy", "top5_accuracy", "label_accuracy", "balanced_accuracy", "f1_macro", "mcc", "roc_auc"),
    *("mean_average_precision", "loss"),
)
"""What a screen has room for; the JSON has all."""


def run(arguments: Sequence[str]) -> None:
    """Run the verb on its arguments."""
    run_command(evaluate, flags_from_keys(arguments, KEYS), verb="evaluate")


def evaluate(
    model: ModelArgument,
    data: Annotated[
        str | None, typer.Argument(help="Labelled images; without them, those the run was trained on.", metavar="DATA")
    ] = None,
    split: Annotated[
        str, typer.Option("--split", help="Part of the data: train, val, test or all.", metavar="NAME")
    ] = "test",
    batch_size: BatchSize = None,
    workers: Workers = None,
    device: Device = "auto",
    bad_files: Annotated[
        str, typer.Option("--bad-files", help="An unreadable file: stop, or skip and count it.", metavar="error|skip")
    ] = "error",
    runtime: Runtime = "auto",
    trust: Trust = None,
    tta: Views = "none",
    output: Annotated[
        str | None, typer.Option("--output", help="Write the measurements there as JSON.", metavar="FILE")
    ] = None,
    json: Json = False,
) -> None:
    """Measure a run or a model on labelled data, each number with its 95 % interval."""
    measured = load_object(VERBS["evaluate"])(
        model, data, split=split, batch_size=batch_size, workers=workers, device=device,
        bad_files=bad_files, runtime=runtime, trust=tuple(trust or ()), tta=tta, output=output,
    )  # fmt: skip
    for line in measured.get("notes", ()):
        note(line)
    if json:
        say_json(measured)
        return
    _tell(measured)
    say(tr("model  {model}", model=model))
    if output:
        say(tr("file   {file}", file=output))
    say(tr("next   {command}", command=f"kiln predict {shlex.quote(model)} IMAGES"))


def _tell(measured: Mapping[str, Any]) -> None:
    """The classes as a table, then the metrics one a line."""
    rows = [row for row in measured.get("per_class", ()) if isinstance(row, Mapping)]
    if rows:
        columns = [name for name in rows[0] if not name.endswith(("_low", "_high"))]
        table(columns, [[_with_interval(row, column) for column in columns] for row in rows[:MOST_CLASSES_SHOWN]])
        if len(rows) > MOST_CLASSES_SHOWN:
            say(
                tr("... {count} further classes: --json or --output has them all", count=len(rows) - MOST_CLASSES_SHOWN)
            )
        say()
    _tell_metrics(measured)
    bad = measured.get("skipped")
    skipped = tr(" ({count:,} unreadable, not counted)", count=bad) if bad else ""
    say(tr("images {count:,}{skipped}", count=measured["n"], skipped=skipped))
    if measured["views"]:
        views = ", ".join(measured["views"])
        say(
            tr(
                "views  {count} of each image, probabilities averaged: {views}",
                count=len(measured["views"]),
                views=views,
            )
        )


def _tell_metrics(measured: Mapping[str, Any]) -> None:
    values = {name: value for name, value in measured.items() if isinstance(value, float)}
    for name in [name for name in values if name in SHOWN]:
        low, high = measured["intervals"].get(name, (None, None))
        say(describe_metric(name, {"value": values[name], "low": low, "high": high}))
    calibration = measured.get("calibration", {}).get("equal_width")
    if calibration:
        low, high = calibration["band"]
        told = "calibration error {ece:.3f}; a calibrated model would show {low:.3f} to {high:.3f}"
        say(tr(told, ece=calibration["ece"], low=low, high=high))
    if "answers" in measured:
        coverage, right = (measured["answers"][name] for name in ("coverage", "accuracy"))
        answered = percent(coverage["value"], coverage["low"], coverage["high"])
        of_those = percent(right["value"] or 0.0, right["low"], right["high"])
        say(tr("answered {answered}, of those right {right}", answered=answered, right=of_those))
    further = len([name for name in values if name not in SHOWN])
    if further:
        say(tr("... {count} further metrics: --json or --output has them all", count=further))


def _with_interval(row: Mapping[str, Any], column: str) -> Any:
    value, low, high = (row.get(name) for name in (column, f"{column}_low", f"{column}_high"))
    if not isinstance(value, float):
        return value
    return (
        f"{value:.3f}"
        if low is None or high is None
        else f"{value:.3f}" + tr(" ({low:.3f} to {high:.3f})", low=low, high=high)
    )
