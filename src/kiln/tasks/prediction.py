"""What a model says about one image, in words."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Prediction:
    """One decision and what else was likely.

    Attributes:
        label: the decision as a label table would write it.
        labels: the decision as names: one for classification, any number for multilabel.
        probability: how sure the model is of the decision, 0 to 1; for multilabel, of its least certain part.
        top: the likeliest names with their probabilities, best first.
        error: why there is no decision, for an image that cannot be read; the other fields are then empty.
        unfamiliarity: how little it is like what the model knows, 0 to 1; None where the model cannot tell.
        refused: why the answer is withheld, `unsure` or `unfamiliar`; `label` and `labels` are then empty, `top` is not.
    """

    label: str
    labels: tuple[str, ...]
    probability: float
    top: tuple[tuple[str, float], ...]
    error: str = ""
    unfamiliarity: float | None = None
    refused: str = ""


def likeliest(probabilities, classes: tuple[str, ...], top_k: int) -> tuple[tuple[str, float], ...]:
    """The `top_k` names with the highest probability, best first; equal ones in class order."""
    order = (-probabilities).argsort(kind="stable")[:top_k]
    return tuple((classes[index], float(probabilities[index])) for index in order)
