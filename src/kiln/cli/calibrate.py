"""`kiln calibrate`: make a model's probabilities true, and let it say that it does not know."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from kiln.cli.app import Device, Json, ModelArgument, Trust, run_command
from kiln.cli.terminal import say, say_json
from kiln.language import tr
from kiln.language.width import label
from kiln.names import VERBS, load_object
from kiln.observe.wording import describe_metric, harm_of_calibration, percent


def run(arguments: Sequence[str]) -> None:
    """Run the verb on its arguments."""
    run_command(calibrate, arguments, verb="calibrate")


def calibrate(
    model: ModelArgument,
    data: Annotated[
        str | None, typer.Argument(help="Labelled images, for a model file without its run.", metavar="DATA")
    ] = None,
    method: Annotated[
        str,
        typer.Option("--method", help="One factor, one for each class, or none.", metavar="temperature|vector|none"),
    ] = "temperature",
    accuracy: Annotated[
        float | None, typer.Option("--accuracy", help="Answer only where that share is right.", metavar="SHARE")
    ] = None,
    coverage: Annotated[
        float | None, typer.Option("--coverage", help="Answer that share of images, the surest.", metavar="SHARE")
    ] = None,
    max_unfamiliarity: Annotated[
        float | None,
        typer.Option(
            "--max-unfamiliarity",
            help="Answer no image less familiar than that share of the validation images.",
            metavar="SHARE",
        ),
    ] = None,
    split: Annotated[str, typer.Option("--split", help="Part of DATA to fit on; never test.", metavar="NAME")] = "val",
    device: Device = "auto",
    trust: Trust = None,
    json: Json = False,
) -> None:
    """Fit on validation how sure a model should be, and when it should not answer; written into its model file."""
    wanted = {"accuracy": accuracy, "coverage": coverage, "max_unfamiliarity": max_unfamiliarity}
    found = load_object(VERBS["calibrate"])(
        model, data, method=method, split=split, device=device, trust=tuple(trust or ()), **wanted
    )
    if json:
        say_json(found)
        return
    _tell(found)
    say(tr("model  {model}", model=found["model"]))
    say(tr("next   {command}", command=f"kiln predict {shlex.quote(model)} IMAGES"))


def _tell(found: Mapping[str, Any]) -> None:
    decision = found["decision"]
    fitted = decision["fitted"]
    say(_said_of_fit(decision, fitted))
    if decision["least_probability"] is not None:
        say(tr("answers only from a probability of {least:.4f} on", least=decision["least_probability"]))
    if decision["most_unfamiliar"] is not None:
        say(
            tr(
                "answers nothing less familiar than {share} of the validation images",
                share=percent(decision["most_unfamiliar"]),
            )
        )
    for split, measured in found["metrics"].items():
        for name in ("accuracy", "loss", "ece"):
            if name in measured["before"]:
                before, after = (describe_metric(name, measured[when][name]) for when in ("before", "after"))
                say(label(split) + tr("{before} before, {after} after", before=before, after=after))
        if "answers" in measured:
            answers = measured["answers"]
            answered, right = (_share(answers[name]) for name in ("coverage", "accuracy"))
            say(label(split) + tr("{answered} answered, {right} of those right", answered=answered, right=right))
    if found["harm"] is not None:
        say(tr("note   {note}", note=harm_of_calibration(**found["harm"])))


def _said_of_fit(decision: Mapping[str, Any], fitted: Mapping[str, Any]) -> str:
    if fitted["method"] == "none":
        if fitted["asked_method"] == "none":
            return tr("calibration none, as asked")
        return tr("calibration none: {method} scaling does not help on samples that it has not seen (n {n:,})",
                  method=fitted["asked_method"], n=fitted["n"])  # fmt: skip
    how = f"temperature {1 / decision['scale'][0]:.4g}" if fitted["method"] == "temperature" else "vector scaling"
    return tr(
        "calibration {how} (n {n:,}): log loss of unseen samples {before:.4f} -> {after:.4f}",
        how=how, n=fitted["n"], before=fitted["loss_before"], after=fitted["loss_after"],
    )  # fmt: skip


def _share(metric: Mapping[str, Any]) -> str:
    return "-" if metric["value"] is None else percent(metric["value"], metric["low"], metric["high"])
