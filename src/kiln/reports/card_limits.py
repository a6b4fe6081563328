"""What a model card says of confidence and of limits: what was found, and what was not looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

FEW = 30
"""A class with fewer held-out samples has an interval too wide to promise anything."""
UNMEASURED = (
    "Not measured: images of another origin (camera, light, place, time) than the training data.",
    "Not measured: fairness towards groups of people, and robustness against images made to deceive.",
)


def calibration(decision: Mapping[str, Any], details: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Whether the probabilities were made true, and when the model does not answer."""
    fitted = decision.get("fitted") or {}
    method = fitted.get("method", "none")
    lines = ["Probabilities were not calibrated."]
    if method != "none" and decision.get("scale"):
        fit = f"fitted on {fitted.get('split', 'val')}, n {fitted.get('n', 0):,}"
        lines = [f"Probabilities are calibrated by {method} scaling, {fit}; the model file holds it."]
    least, most = decision.get("least_probability"), decision.get("most_unfamiliar")
    if least is not None:
        lines.append(f"It answers only from a probability of {least:.4f} on; else it says `unsure`.")
    if most is not None:
        lines.append(
            f"It does not answer what is less familiar than {most:.1%} of the validation images: `unfamiliar`."
        )
    if least is None and most is None:
        lines.append("It answers always; no threshold for refusing was set.")
    for split, found in details.items():
        if "answers" in found:
            coverage, accuracy = (_share(found["answers"][name]) for name in ("coverage", "accuracy"))
            lines.append(f"On {split} it answers {coverage} of the images, and is right in {accuracy} of those.")
    return lines


def _share(metric: Mapping[str, Any]) -> str:
    if metric["value"] is None:
        return "an unknown share"
    known = metric.get("low") is not None and metric.get("high") is not None
    return f"{metric['value']:.1%}" + (f" ({metric['low']:.1%} to {metric['high']:.1%})" if known else "")


def limits(details: Mapping[str, Mapping[str, Any]], samples: Mapping[str, int], classes: Sequence[str]) -> list[str]:
    """What a reader should not expect; what was not measured is said."""
    lines = [
        f"It knows {len(classes)} classes and nothing else: it answers any image with them, unless it was set to refuse."
    ]
    if "test" not in details:
        where = "validation, which also chose the weights" if "val" in details else "nothing"
        lines.append(f"There was no test split: the numbers come from {where}, and are too good if anything.")
    for split, found in list(details.items())[-1:]:
        rows = [row for row in found.get("per_class", ()) if row.get("recall") is not None]
        if len(rows) > 1 and (worst := min(rows, key=lambda row: row["recall"]))["recall"] < 1:
            lines.append(
                f"Weakest class on {split}: `{worst['class']}`, recall {worst['recall']:.3f}, n {worst['support']:,}."
            )
        if few := [row["class"] for row in rows if row.get("support", 0) < FEW]:
            lines.append(
                f"{len(few)} of {len(rows)} classes have fewer than {FEW} images in {split}: see their intervals."
            )
    if samples.get("train", 0) < FEW * len(classes):
        lines.append(f"It was trained on few images: {samples.get('train', 0):,} for {len(classes)} classes.")
    return [*lines, *UNMEASURED]
