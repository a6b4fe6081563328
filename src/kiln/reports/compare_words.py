"""A comparison in plain words, the same in the command and on the page."""

from __future__ import annotations

from collections.abc import Mapping

from kiln.language import tr
from kiln.measure.paired_metrics import MetricDifference
from kiln.measure.seeds import MeanDifference
from kiln.measure.side_by_side import SpeedRatio
from kiln.reports.comparison import ACCURACY, BETTER, WORSE, Comparison, Pair, RecipeComparison, RecipePair

SHARES = ("accuracy", "top5_accuracy", "balanced_accuracy", "label_accuracy", "f1_macro", "f1_micro", "f1_weighted")
"""Metrics that are told in percent."""


def headline(found: Comparison, pair: Pair) -> str:
    """Whether the second of a pair is better, with the numbers that say so."""
    before, after = (
        next(model.metrics[ACCURACY] for model in found.models if model.name == name)
        for name in (pair.first, pair.second)
    )
    values = {
        "first": pair.first,
        "second": pair.second,
        "before": share(before),
        "after": share(after),
        "difference": points(pair.accuracy.value, pair.accuracy.low, pair.accuracy.high),
        "p": chance(pair.p),
    }
    if pair.verdict == BETTER:
        return tr("{second} is better than {first}: accuracy {before} -> {after}, {difference}, p {p}", **values)
    if pair.verdict == WORSE:
        return tr("{second} is worse than {first}: accuracy {before} -> {after}, {difference}, p {p}", **values)
    return tr(
        "no difference shown between {second} and {first}: accuracy {before} -> {after}, {difference}, p {p}", **values
    )


def reach(found: Comparison, pair: Pair) -> str:
    """How large a difference so many samples could have shown."""
    size, independent = f"{100 * pair.accuracy.detectable:.1f}", pair.accuracy.num_groups
    if independent is not None:
        return tr(
            "{n} samples in {groups} groups show a true difference of {size} points in 80 of 100 cases, smaller ones less often",
            n=f"{found.n:,}", groups=f"{independent:,}", size=size,
        )  # fmt: skip
    return tr(
        "{n} samples show a true difference of {size} points in 80 of 100 cases, smaller ones less often",
        n=f"{found.n:,}", size=size,
    )  # fmt: skip


def flipped(pair: Pair) -> str:
    """How many samples changed, and how often both say the same."""
    return tr(
        "{gained} samples went from wrong to right, {lost} from right to wrong; both say the same of {agreement}",
        gained=f"{pair.accuracy.only_second:,}", lost=f"{pair.accuracy.only_first:,}", agreement=share(pair.agreement),
    )  # fmt: skip


def speed_line(pair: Pair, speed: SpeedRatio) -> str:
    """How much longer the second takes."""
    values = {
        "second": pair.second,
        "ratio": f"{speed.value:.2f}",
        "low": f"{speed.low:.2f}",
        "high": f"{speed.high:.2f}",
        "n": speed.num_rounds,
    }
    return tr(
        "{second} takes {ratio} times as long ({low} to {high}, the middle half of {n} rounds in turns)", **values
    )


def recipe_headline(found: RecipeComparison, pair: RecipePair) -> str:
    """Whether the second recipe is better, with the numbers that say so."""
    first, second = (
        next(recipe for recipe in found.recipes if recipe.name == name) for name in (pair.first, pair.second)
    )
    difference = pair.metrics[ACCURACY]
    values = {
        "first": pair.first,
        "second": pair.second,
        "before": share(mean(first.metrics[ACCURACY])),
        "after": share(mean(second.metrics[ACCURACY])),
        "difference": points(difference.value, difference.low, difference.high),
        "p": chance(pair.p),
        "seeds": f"{len(first.runs)} + {len(second.runs)}",
    }
    if pair.verdict == BETTER:
        return tr(
            "{second} is better than {first}: mean accuracy {before} -> {after}, {difference}, p {p}, {seeds} seeds",
            **values,
        )
    if pair.verdict == WORSE:
        return tr(
            "{second} is worse than {first}: mean accuracy {before} -> {after}, {difference}, p {p}, {seeds} seeds",
            **values,
        )
    return tr(
        "no difference shown between {second} and {first}: mean accuracy {before} -> {after}, {difference}, p {p}, {seeds} seeds",
        **values,
    )


def settings(differs: Mapping[str, tuple[object, object]]) -> str:
    """What distinguishes two recipes: `optim.lr 0.01 -> 0.02`."""
    return ", ".join(f"{name} {before} -> {after}" for name, (before, after) in differs.items())


def change(name: str, found: MetricDifference | MeanDifference) -> str:
    """The difference in a metric with its interval, in points where it is a share."""
    if name in SHARES:
        return points(found.value, found.low, found.high)
    value, low, high = (f"{part:+.4f}" for part in (found.value, found.low, found.high))
    return tr("{value} ({low} to {high})", value=value, low=low, high=high)


def metric(name: str, value: float) -> str:
    """A metric's value."""
    return share(value) if name in SHARES else f"{value:.4f}"


def tendency(found: MetricDifference) -> str:
    """Whether a metric's interval leaves out no difference, and to which side."""
    if found.low <= 0 <= found.high:
        return tr("no difference shown")
    return tr("better") if (found.value > 0) == found.higher_is_better else tr("worse")


def points(value: float, low: float, high: float) -> str:
    """A difference of shares: `+1.9 points (+0.4 to +3.4)`."""
    return tr(
        "{value} points ({low} to {high})",
        value=f"{100 * value:+.1f}",
        low=f"{100 * low:+.1f}",
        high=f"{100 * high:+.1f}",
    )


def share(value: float) -> str:
    """`97.2 %`."""
    return f"{100 * value:.1f} %"


def chance(p: float) -> str:
    """A p value, to what is worth reading of it."""
    return "< 0.0001" if p < 0.0001 else f"= {p:.2g}"


def size(num_bytes: int | None) -> str:
    """`12.3 MB`."""
    return "-" if num_bytes is None else f"{num_bytes / 1e6:.1f} MB"


def count(number: float | None) -> str:
    """`1,234`."""
    return "-" if number is None else f"{number:,.0f}"


def mean(values: tuple[float, ...]) -> float:
    """Of the runs of a recipe."""
    return sum(values) / len(values)
