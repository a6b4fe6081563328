"""How a training ends, told to a person or to a program."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kiln.cli.terminal import say, say_json, table
from kiln.errors import Preempted
from kiln.language import tr
from kiln.language.width import label
from kiln.names import VERBS, load_object
from kiln.observe.wording import describe_metrics


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
    if not _is_launched() and load_object("kiln.jobs.training.launch:rank")() == 0:
        tell_outcome(run.summary(), json=json, measured=quiet)


def plan_and_tell(recipe: Any, *, quiet: bool, json: bool) -> None:
    """Say what a training by this recipe would do: what was decided, and each group of parameters."""
    plan = load_object("kiln.jobs.dry_run:dry_run")(recipe=recipe, progress=_progress(quiet=quiet, json=json))
    if json:
        say_json(plan)
        return
    columns = ("group", "lr", "weight_decay", "parameters", "tensors", "settings", "names")
    rows = [{**row, "settings": _assigned(row["settings"])} for row in plan["groups"]]
    shown = [key for key in columns if key != "settings" or any(row[key] for row in rows)]
    table([key.replace("_", " ") for key in shown], [[row[key] for key in shown] for row in rows])
    say(tr("next   the same without --dry-run"))


def _assigned(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in settings.items())


def _is_launched() -> bool:
    return load_object("kiln.jobs.training.launch:is_launched")()


def _progress(*, quiet: bool, json: bool) -> Any:
    return load_object("kiln.observe.progress:make")(quiet=quiet, json=json)


def demo_and_tell(output: str, *, quiet: bool, json: bool) -> None:
    """Run the demonstration and tell its outcome."""
    run = load_object(VERBS["demo"])(output=output, progress=_progress(quiet=quiet, json=json))
    tell_outcome(run.summary(), json=json, measured=quiet)


def tell_outcome(summary: Mapping[str, Any], *, json: bool, measured: bool = True) -> None:
    """Print the summary of a run; what was measured only if nobody has said it yet."""
    if json:
        say_json(summary)
        return
    for split, metrics in summary["metrics"].items() if measured else ():
        say(f"{label(split)}{describe_metrics(metrics)}")
    if not summary["metrics"]:
        say(tr("result nothing was set apart to measure on"))
    for key in ("run", "model", "report"):
        if summary.get(key):
            say(f"{label(key)}{summary[key]}")
    for index, command in enumerate(summary.get("next", ())):
        say(f"{label('' if index else 'next')}{command}")
