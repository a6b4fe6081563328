"""`kiln evaluate`: measure a run or a model on labelled data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from kiln.cli.app import BatchSize, Device, Json, ModelArgument, Runtime, Trust, Workers, flags_from_keys, run_command
from kiln.cli.outcome import describe_metric
from kiln.cli.show import say, say_json, table
from kiln.names import VERBS, load_object

KEYS = {
    "model": "", "data": "", "split": "--split", "batch": "--batch-size", "batch-size": "--batch-size",
    "device": "--device", "workers": "--workers", "bad-files": "--bad-files", "runtime": "--runtime",
}  # fmt: skip
MOST_CLASSES_SHOWN = 40


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
    output: Annotated[
        str | None, typer.Option("--output", help="Write the measurements there as JSON.", metavar="FILE")
    ] = None,
    json: Json = False,
) -> None:
    """Measure a run or a model on labelled data, each number with its 95 % interval."""
    measured = load_object(VERBS["evaluate"])(
        model, data, split=split, batch_size=batch_size, workers=workers, device=device,
        bad_files=bad_files, runtime=runtime, trust=tuple(trust or ()), output=output,
    )  # fmt: skip
    if json:
        say_json(measured)
        return
    _tell(measured)
    say(f"model  {model}")
    if output:
        say(f"file   {output}")
    say(f"next   kiln predict {model} IMAGES")


def _tell(measured: Mapping[str, Any]) -> None:
    """The metrics one a line, then the classes as a table."""
    per_class = measured.get("per_class")
    if isinstance(per_class, Sequence) and per_class:
        shown = [row for row in per_class if isinstance(row, Mapping)][:MOST_CLASSES_SHOWN]
        columns = list(dict.fromkeys(key for row in shown for key in row))
        table(columns, [[row.get(column) for column in columns] for row in shown])
        if len(per_class) > len(shown):
            say(f"... {len(per_class) - len(shown)} further classes: --json or --output has them all")
        say()
    intervals = measured.get("intervals") or {}
    for name, value in measured.items():
        if isinstance(value, float):
            low, high = intervals.get(name) or (None, None)
            say(describe_metric(name, {"value": value, "low": low, "high": high}))
    if "n" in measured:
        skipped = f" ({measured['skipped']:,} unreadable, not counted)" if measured.get("skipped") else ""
        say(f"n {measured['n']:,}{skipped}")
