"""How metrics are said: shares in percent, everything with its 95 % interval where it has one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def describe_metrics(metrics: Mapping[str, Any]) -> str:
    """The first metric of a split and the loss on one line: `accuracy 97.2 % (95.8 to 98.2), loss 0.104, n 360`."""
    parts = [describe_metric(name, metrics[name]) for name in headline(metrics)]
    counts = [metric["n"] for metric in metrics.values() if isinstance(metric, Mapping) and "n" in metric]
    return ", ".join(parts + ([f"n {max(counts):,}"] if counts else []))


def headline(metrics: Mapping[str, Any]) -> list[str]:
    """The names of the first metric and the loss: what a line has room for."""
    return [name for name in dict.fromkeys([*list(metrics)[:1], "loss"]) if name in metrics]


def describe_metric(name: str, metric: Any) -> str:
    """One metric with its interval; `metric` is a number, or has `value`, `low` and `high`."""
    value, low, high = (
        (metric.get(key) for key in ("value", "low", "high")) if isinstance(metric, Mapping) else (metric, None, None)
    )
    if not isinstance(value, (int, float)):
        return f"{name.replace('_', ' ')} {value}"
    if 0 <= value <= 1 and name != "loss":
        return f"{name.replace('_', ' ')} {percent(value, low, high)}"
    interval = f" ({low:.3f} to {high:.3f})" if low is not None and high is not None else ""
    return f"{name.replace('_', ' ')} {value:.3f}{interval}"


def percent(value: float, low: float | None = None, high: float | None = None) -> str:
    """A share with its interval: `97.2 % (95.8 to 98.2)`."""
    interval = f" ({100 * low:.1f} to {100 * high:.1f})" if low is not None and high is not None else ""
    return f"{100 * value:.1f} %{interval}"
