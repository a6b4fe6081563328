"""How a training ends, told to a person or to a program."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kiln.cli.show import percent, say, say_json
from kiln.errors import Preempted
from kiln.names import VERBS, load_object


def train_and_tell(data: str | None, *, quiet: bool, json: bool, **settings: Any) -> None:
    """Train, then say what was reached, where it lies and what to run next.

    Args:
        data: what to train on, or None for what a resumed run trained on.
        quiet: only the outcome.
        json: the outcome as one JSON object.
        settings: `recipe`, or `resume` with `overrides`; `extend`: as `kiln.train` takes them.
    """
    try:
        run = load_object(VERBS["train"])(data, progress=_progress(quiet=quiet, json=json), **settings)
    except Preempted:
        if _is_launched():  # it is in the status, and whoever started us says it
            return
        raise
    if not _is_launched() and load_object("kiln.jobs.launch:rank")() == 0:
        tell_outcome(run.summary(), json=json)


def _is_launched() -> bool:
    return load_object("kiln.jobs.launch:is_launched")()


def _progress(*, quiet: bool, json: bool) -> Any:
    return load_object("kiln.observe.progress:make")(quiet=quiet, json=json)


def demo_and_tell(output: str, *, quiet: bool, json: bool) -> None:
    """Run the demonstration and tell its outcome."""
    run = load_object(VERBS["demo"])(output=output, progress=_progress(quiet=quiet, json=json))
    tell_outcome(run.summary(), json=json)


def tell_outcome(summary: Mapping[str, Any], *, json: bool) -> None:
    """Print the summary of a run."""
    if json:
        say_json(summary)
        return
    for split, metrics in summary["metrics"].items():
        say(f"{split:<6} {describe_metrics(metrics)}")
    for key in ("run", "model"):
        if summary.get(key):
            say(f"{key:<6} {summary[key]}")
    for index, command in enumerate(summary.get("next", ())):
        say(f"{'' if index else 'next':<6} {command}")


def describe_metrics(metrics: Mapping[str, Any]) -> str:
    """The first metric of a split and the loss on one line: `accuracy 97.2 % (95.8 to 98.2), loss 0.104, n 360`."""
    headline = [name for name in dict.fromkeys([*list(metrics)[:1], "loss"]) if name in metrics]
    parts = [describe_metric(name, metrics[name]) for name in headline]
    counts = [metric["n"] for metric in metrics.values() if isinstance(metric, Mapping) and "n" in metric]
    return ", ".join(parts + ([f"n {max(counts):,}"] if counts else []))


def describe_metric(name: str, metric: Any) -> str:
    """One metric with its 95 % interval, where it has one; shares in percent."""
    value, low, high = (
        (metric.get(key) for key in ("value", "low", "high")) if isinstance(metric, Mapping) else (metric, None, None)
    )
    if not isinstance(value, (int, float)):
        return f"{name.replace('_', ' ')} {value}"
    if 0 <= value <= 1 and name != "loss":
        return f"{name.replace('_', ' ')} {percent(value, low, high)}"
    interval = f" ({low:.3f} to {high:.3f})" if low is not None and high is not None else ""
    return f"{name.replace('_', ' ')} {value:.3f}{interval}"
