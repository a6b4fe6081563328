"""How metrics are said: shares in percent, everything with its 95 % interval where it has one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from kiln.data.storage import counted
from kiln.language import current, tr, word
from kiln.language.patterns import translated

_AVERAGED = re.compile(r"(.+)_(macro|micro|weighted)")
_OF_CLASS = re.compile(r"(\w+)\[(.+)\]")
_WITH_NUMBER = re.compile(r"([a-z_]+)_([\d.]+)")
_TOP = re.compile(r"top(\d+)_accuracy")


NO_SHARES = ("loss", "brier", "ece", "ece_adaptive", "aurc", "mcc", "kappa", "roc_auc")
"""Metrics that are no share of anything, though most lie between 0 and 1."""


def describe_metrics(metrics: Mapping[str, Any]) -> str:
    """The first metric of a split and the loss on one line: `accuracy 97.2 % (95.8 to 98.2), loss 0.104, n 360`."""
    parts = [describe_metric(name, metrics[name]) for name in headline(metrics)]
    counts = [metric["n"] for metric in metrics.values() if isinstance(metric, Mapping) and "n" in metric]
    return tr(", ").join(parts + ([f"n {max(counts):,}"] if counts else []))


def headline(metrics: Mapping[str, Any]) -> list[str]:
    """The names of the first metric and the loss: what a line has room for."""
    return [name for name in dict.fromkeys([*list(metrics)[:1], "loss"]) if name in metrics]


def describe_metric(name: str, metric: Any) -> str:
    """One metric with its interval; `metric` is a number, or has `value`, `low` and `high`."""
    value, low, high = (
        (metric.get(key) for key in ("value", "low", "high")) if isinstance(metric, Mapping) else (metric, None, None)
    )
    if not isinstance(value, (int, float)):
        return f"{metric_name(name)} {value}"
    if 0 <= value <= 1 and name not in NO_SHARES:
        return f"{metric_name(name)} {percent(value, low, high)}"
    interval = tr(" ({low:.3f} to {high:.3f})", low=low, high=high) if low is not None and high is not None else ""
    return f"{metric_name(name)} {value:.3f}{interval}"


def metric_value(name: str, value: float) -> str:
    """A metric without its name: a share in percent, anything else with three digits."""
    return percent(value) if 0 <= value <= 1 and name not in NO_SHARES else f"{value:.3f}"


def metric_name(name: str) -> str:
    """A metric as it is said: `balanced accuracy`; in another language its parts are said one by one."""
    said = word(name)
    if said != name or current() == "en":
        return said.replace("_", " ")
    if found := _AVERAGED.fullmatch(name):
        return f"{word(found[2])} {metric_name(found[1])}"
    if found := _OF_CLASS.fullmatch(name):
        return f"{metric_name(found[1])}[{found[2]}]"
    if found := _WITH_NUMBER.fullmatch(name):
        return f"{metric_name(found[1])} {found[2]}"
    if found := _TOP.fullmatch(name):
        return f"Top-{found[1]} {word('accuracy')}"
    return name.replace("_", " ")


def percent(value: float, low: float | None = None, high: float | None = None) -> str:
    """A share with its interval: `97.2 % (95.8 to 98.2)`."""
    if low is None or high is None:
        return f"{100 * value:.1f} %"
    return f"{100 * value:.1f} %" + tr(" ({low:.1f} to {high:.1f})", low=100 * low, high=100 * high)


def harm_of_calibration(*, loss_before: float, loss_after: float, ece_before: float, ece_after: float) -> str:
    """That a calibration which was fitted on validation made test worse."""
    return tr(
        "on test the calibration did harm (loss {loss_before:.3f} -> {loss_after:.3f}, ece {ece_before:.3f} -> "
        "{ece_after:.3f}): the validation images are not like the test images; kiln calibrate RUN --method none takes it off",
        loss_before=loss_before, loss_after=loss_after, ece_before=ece_before, ece_after=ece_after,
    )  # fmt: skip


def amount(number: int, thing: str) -> str:
    """`1 image`, `2 images`, in the language of the moment."""
    return translated(counted(number, thing))
