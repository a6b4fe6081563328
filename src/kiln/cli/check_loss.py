"""`kiln check-loss`: whether a loss does what a loss must."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from kiln.cli.app import Json, run_command
from kiln.cli.terminal import say, say_json, table
from kiln.errors import NumericError, UsageError
from kiln.language import tr, word
from kiln.language.patterns import translated
from kiln.names import load_object

if TYPE_CHECKING:
    from kiln.losses import LossReport


def run(arguments: Sequence[str]) -> None:
    """Run the verb on its arguments."""
    run_command(check_loss, arguments, verb="check-loss")


def check_loss(
    loss: Annotated[
        str,
        typer.Argument(help="Your own as module:name or file.py:name, a name, or a sum of them.", metavar="LOSS"),
    ],
    targets: Annotated[
        str,
        typer.Option(
            "--targets",
            help="What it is made for: classes, shares, labels, values, masks, embeddings, or auto.",
            metavar="KIND",
        ),
    ] = "auto",
    shape: Annotated[
        str | None,
        typer.Option("--shape", help="Shape of one sample's outputs, classes first: 10 or 1,16,16.", metavar="K,H,W"),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the made-up data.", metavar="N")] = 0,
    json: Json = False,
) -> None:
    """Try a loss on made-up data, before it costs a training.

    Gradient against differences in float64, direction, finite at +-1e4 and at perfect and empty targets, a clamp that
    silences the gradient, mean or sum, half precision, a usual loss beside it, speed. Status 7 if it fails.
    """
    report: LossReport = load_object("kiln.losses:check")(loss, targets=targets, shape=_numbers(shape), seed=seed)
    if json:
        said = {"loss": report.loss, "targets": report.targets, "passed": report.passed}
        say_json({**said, "findings": [asdict(finding) for finding in report.findings]})
    else:
        say(tr("{loss} on {targets}", loss=report.loss, targets=report.targets))
        table(
            ("check", "verdict", "what was seen"),
            [(translated(f.check), word(f.verdict), translated(f.detail)) for f in report.findings],
        )
        say(tr("verdict  {verdict}", verdict=translated(report.verdict)))
    if not report.passed:
        raise SystemExit(NumericError.exit_code)


def _numbers(shape: str | None) -> tuple[int, ...] | None:
    if shape is None:
        return None
    parts = shape.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise UsageError("E102", f"--shape {shape}", expected="whole numbers above 0, such as 10 or 1,16,16")
    return tuple(map(int, parts))
