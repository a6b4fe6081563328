"""Which metrics a training computes at each validation, besides those that its task tells anyway."""

from __future__ import annotations

import numpy as np

from kiln.errors import UsageError
from kiln.jobs.assembly.resolve import Settings
from kiln.jobs.intake import Intake
from kiln.names import names_code
from kiln.optim.schedules import Plateau

TRIED_SAMPLES = 64
"""Validation samples that a metric is tried on before the first step."""


def further_metrics(settings: Settings, intake: Intake, plateau: Plateau | None) -> tuple[str, ...]:
    """The metrics that are asked for, or decide, besides those that the task tells anyway.

    Raises: UsageError: one does not exist or fails, or settings about validation have no effect.
    """
    monitor, given = settings["training.monitor"], settings["training.metrics"]
    _require_validation(settings, intake)
    watched = plateau.monitor if plateau is not None else None
    if watched and names_code(watched) and watched not in (*given, monitor):
        raise UsageError(
            "E101", f"plateau: monitor = {watched!r}", hint=f"name it in training.metrics too: [{watched}]"
        )
    asked = [("training.metrics", name) for name in given]
    asked += [("training.monitor", monitor)] + ([("plateau: monitor", watched)] if watched else [])
    task, classes, val = intake.task, intake.classes, intake.split.val
    tried = val[:TRIED_SAMPLES] if len(val) else np.arange(1)
    logits, targets = np.zeros((len(tried), task.num_outputs(classes)), np.float32), intake.targets[tried]
    told = task.metrics(logits, targets, classes, intervals=False)
    further: dict[str, None] = {}
    for field, name in asked:
        if name in told:
            continue
        try:
            task.metrics(logits, targets, classes, intervals=False, names=[name])
        except UsageError as error:
            if error.code != "E101":
                raise
            known = task.metric_names(len(classes))
            hint = "or your own, as module:name"
            raise UsageError("E101", f"{field} = {name!r}", got=name, choices=known, hint=hint) from error
        further[name] = None
    return tuple(further)


def _require_validation(settings: Settings, intake: Intake) -> None:
    """Raises: UsageError: settings about validation, and nothing to validate on."""
    if len(intake.split.val):
        return
    monitor, patience, given = (settings[f"training.{name}"] for name in ("monitor", "patience", "metrics"))
    asked = [f"training.patience = {patience}"] if patience is not None else []
    asked += [f"training.monitor = {monitor}"] if "training.monitor" not in settings.reasons else []
    asked += [f"training.metrics = {', '.join(given)}"] if given else []
    thresholds = ("answers.wanted_accuracy", "answers.wanted_coverage", "answers.max_unfamiliarity")
    asked += [f"{name} = {settings[name]}" for name in thresholds if settings[name] is not None]
    if asked:
        what = f"{' and '.join(asked)} without effect: there is nothing to validate on"
        raise UsageError("E103", what, hint="leave it out, or set data.val_fraction or a folder called val apart")
