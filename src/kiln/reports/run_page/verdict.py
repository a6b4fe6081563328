"""The head of a report: the number with its interval, and in plain words what it means and what limits it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kiln.language import tr
from kiln.reports.run_page.calibration import told_harm
from kiln.reports.run_page.material import Material
from kiln.reports.run_page.subject import Subject
from kiln.reports.run_page.words import between, is_share, metric_name, percent, shown_value, split_name

WIDE = 0.03
"""An interval that reaches further than this to each side limits what can be said."""
WEAK = 0.2
"""A class this far below the mean recall is named."""
MOST_LIMITS = 5


def headline(material: Material, split: str, subject: Subject | None) -> dict[str, Any]:
    """What stands at the top of the page."""
    metrics: Mapping[str, Any] = material.result.get("metrics", {}).get(split, {})
    chosen = str(material.values.get("training.monitor", "accuracy"))
    main = "accuracy" if "accuracy" in metrics else chosen if chosen in metrics else next(iter(metrics), "")
    found = metrics.get(main, {})
    return {
        "metric": metric_name(main) if main else "",
        "value": shown_value(main, found.get("value")),
        "interval": between(found, share=is_share(main)),
        "n": found.get("n", 0),
        "verdict": _verdict(main, found, split, subject, material),
        "limits": _limits(material, split, main, found, subject)[:MOST_LIMITS],
        "splits": [split_name(name) for name in material.result.get("metrics", {})],
        "rows": _rows(material, main=True),
        "further": _rows(material, main=False),
    }


MAIN = (
    *("accuracy", "top5_accuracy", "label_accuracy", "balanced_accuracy", "f1_macro", "mcc", "roc_auc"),
    *("mean_average_precision", "loss", "ece"),
)
"""Metrics that are shown at once, with the one that decided and the user's own; the others unfold."""


def _rows(material: Material, *, main: bool) -> list[dict[str, Any]]:
    """Metrics on every split: the main ones, or the others."""
    metrics: Mapping[str, Mapping[str, Any]] = material.result.get("metrics", {})
    at_once = {*MAIN, material.values.get("training.monitor"), *material.values.get("training.metrics", ())}
    names = dict.fromkeys(name for found in metrics.values() for name in found)
    return [
        {
            "name": metric_name(name),
            "cells": [
                (
                    shown_value(name, metrics[split].get(name, {}).get("value")),
                    between(metrics[split].get(name, {}), share=is_share(name)),
                )
                for split in metrics
            ],
        }
        for name in names
        if (name in at_once) == main
    ]


def _verdict(main: str, found: Mapping[str, Any], split: str, subject: Subject | None, material: Material) -> list[str]:
    if not main:
        return [tr("Nothing was held out, so nothing can be said of how well the model does on new images.")]
    if main != "accuracy" or subject is None:
        return [
            tr("On {n} {split} images {metric} is {value}.", n=f"{found['n']:,}", split=split_name(split),
               metric=metric_name(main), value=shown_value(main, found["value"]))
        ]  # fmt: skip
    n, value = f"{found['n']:,}", percent(found["value"])
    if subject.one_label:
        said = tr("Of {n} {split} images the model names {value} rightly.", n=n, split=split_name(split), value=value)
    else:
        said = tr(
            "Of {n} {split} images {value} get all their labels right.", n=n, split=split_name(split), value=value
        )
    return [said, _against_guess(found, subject), _how_sure(found), *_seen_before(material, split)]


def _against_guess(found: Mapping[str, Any], subject: Subject) -> str:
    """The model against one that always gives the same answer, the best there is."""
    share = _guessed(subject)
    if subject.one_label:
        counts = subject.true.sum(axis=0)
        name = subject.classes[int(counts.argmax())]
        alike = counts.max() == counts[counts > 0].min()
        most = tr("always saying {name}, the most frequent class", name=name)
        guess = tr("always naming one class") if alike else most
    else:
        rows, counts = np.unique(subject.true, axis=0, return_counts=True)
        best = rows[int(counts.argmax())]
        name = ", ".join(one for one, yes in zip(subject.classes, best, strict=True) if yes) or tr("no label")
        guess = tr("always saying {name}, the most frequent answer", name=name)
    if (found["low"] or 0.0) > share:
        return tr("That is beyond chance: {guess}, would be right for {share}.", guess=guess, share=percent(share))
    return tr("It is not shown to be better than {guess}, which would be right for {share}.", guess=guess,
              share=percent(share))  # fmt: skip


def _guessed(subject: Subject) -> float:
    """How often the best single answer would be right."""
    counts = subject.true.sum(axis=0) if subject.one_label else np.unique(subject.true, axis=0, return_counts=True)[1]
    return float(counts.max() / len(subject))


def _how_sure(found: Mapping[str, Any]) -> str:
    if found.get("low") is None:
        return tr("No interval was computed.")
    low, high = percent(found["low"]), percent(found["high"])
    return tr("On new images of the same kind expect between {low} and {high} (95 % interval).", low=low, high=high)


def _seen_before(material: Material, split: str) -> list[str]:
    """Validation images chose the checkpoint, so their number flatters."""
    if split != "val":
        return []
    if "test" in material.result.get("metrics", {}):
        return [tr("The best step was chosen on these very images, so the number is a little too good.")]
    return [
        tr("There is no test split: the best step was chosen on these very images, so the number is a little too good.")
    ]


def _limits(material: Material, split: str, main: str, found: Mapping[str, Any], subject: Subject | None) -> list[str]:
    """What stands in the way of a better number, or of a surer one, the plainest first."""
    limits = []
    if main == "accuracy" and subject is not None and (found["low"] or 0.0) <= _guessed(subject):
        limits.append(
            tr("The model has learnt nothing yet that would show: train longer, on more images, or from --weights "
               "pretrained.")
        )  # fmt: skip
    limits += _between_splits(material)
    if material.outputs is not None and (harm := told_harm(material.outputs)):
        limits.append(tr("Note: {note}.", note=harm))
    if found.get("low") is not None and is_share(main) and (found["high"] - found["low"]) / 2 > WIDE:
        half = f"{50 * (found['high'] - found['low']):.1f}"
        limits.append(
            tr("{n} {split} images fix the number only to about {half} points to each side; four times as many would "
               "halve that.", n=f"{found['n']:,}", split=split_name(split), half=half)
        )  # fmt: skip
    limits += _from_curves(material.lines)
    if subject is not None and subject.one_label:
        limits += _from_confusion(subject)
    if main == "accuracy" and subject is not None:
        limits += _from_classes(subject)
    skipped = sum(material.result.get("skipped", {}).values())
    if skipped:
        limits.append(tr("{n} held-out files could not be read and are in no number.", n=skipped))
    return limits


def _from_curves(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    losses = [
        line["metrics"]["loss"]["value"] for line in lines if line.get("event") == "val" and "loss" in line["metrics"]
    ]
    if len(losses) < 3:
        return []
    best = int(np.argmin(losses))
    if best == len(losses) - 1:
        return [tr("The validation loss was still falling at the end: longer training may help.")]
    if losses[-1] > 1.1 * losses[best]:
        return [
            tr("The validation loss was lowest at evaluation {best} of {all} and has risen since: the model learnt the "
               "training images by heart. More images, or stronger augmentation, may help.",
               best=best + 1, all=len(losses))
        ]  # fmt: skip
    return []


def _from_confusion(subject: Subject) -> list[str]:
    wrong = ~subject.right
    if wrong.sum() < 5:
        return []
    pairs = np.sort(np.stack([subject.true[wrong].argmax(1), subject.given[wrong].argmax(1)], axis=1), axis=1)
    found, counts = np.unique(pairs, axis=0, return_counts=True)
    most = int(counts.argmax())
    share = counts[most] / wrong.sum()
    if share < 0.15 or len(subject.classes) < 3:
        return []
    a, b = (subject.classes[int(index)] for index in found[most])
    return [tr("{a} and {b} taken for each other are {share} of all mistakes.", a=a, b=b, share=percent(share, 0))]


def _from_classes(subject: Subject) -> list[str]:
    support = subject.true.sum(axis=0)
    recall = (subject.true & subject.given).sum(axis=0) / np.maximum(support, 1)
    there = support >= 5
    if not there.any():
        return []
    weak = [int(k) for k in np.argsort(recall) if there[k] and recall[k] < recall[there].mean() - WEAK]
    if not weak:
        return []
    names = ", ".join(f"{subject.classes[k]} ({percent(float(recall[k]), 0)})" for k in weak[:3])
    return [tr("Least is found of these classes (recall): {names}.", names=names)]


def _between_splits(material: Material) -> list[str]:
    """Validation and test that differ beyond chance come from different kinds of images.

    Beyond chance: the 95 % interval of the difference of two shares does not hold 0. Source: Newcombe 1998, Statistics in
    Medicine 17, 873-890, method 10, made of the intervals of the two, so that it heeds groups as they do.
    """
    metrics = material.result.get("metrics", {})
    a, b = (metrics.get(name, {}).get("accuracy", {}) for name in ("val", "test"))
    if a.get("low") is None or b.get("low") is None:
        return []
    above, below = (a, b) if a["value"] > b["value"] else (b, a)
    if above["value"] - below["value"] <= np.hypot(above["value"] - above["low"], below["high"] - below["value"]):
        return []
    if above is b:
        return [
            tr("Validation ({val}) lies clearly below test ({test}): the two seem to hold images of different kinds.",
               test=percent(b["value"]), val=percent(a["value"]))
        ]  # fmt: skip
    return [
        tr("Test ({test}) lies clearly below validation ({val}): the test images seem to differ from those that were "
           "trained on.", test=percent(b["value"]), val=percent(a["value"]))
    ]  # fmt: skip
