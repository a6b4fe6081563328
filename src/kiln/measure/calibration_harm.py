"""Whether a calibration that was fitted on some samples did harm on others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kiln.metrics import bootstrap_mean
from kiln.tasks import Task
from kiln.tasks.decision import Decision


@dataclass(frozen=True, slots=True)
class Harm:
    """What got worse.

    Attributes:
        loss_before: mean log loss without the calibration.
        loss_after: with it.
        ece_before: calibration error without it.
        ece_after: with it.
    """

    loss_before: float
    loss_after: float
    ece_before: float
    ece_after: float


def calibration_harm(
    task: Task,
    logits: NDArray[Any],
    targets: NDArray[Any],
    decision: Decision,
    *,
    classes: tuple[str, ...],
    groups: NDArray[Any] | None = None,
) -> Harm | None:
    """What a calibration made worse on samples that it was not fitted on; None where no harm is shown.

    The loss decides, which is compared sample by sample: the 95 % interval of its mean change lies above 0. The calibration
    error, whose own interval is wide and not of pairs, must agree, so that a few outliers alone are not called harm.

    Args:
        task: of the model.
        logits: (N, K), uncalibrated.
        targets: (N, ...).
        decision: holds the calibration.
        classes: names, in the order of the outputs.
        groups: (N,) values; samples of equal ones belong together and count as one, by their mean.
    """
    if not (decision.scale or decision.bias) or len(targets) == 0:
        return None
    before, after = logits, decision.calibrated(logits)
    losses = [-task.log_likelihoods(said, targets).reshape(len(targets), -1).mean(axis=1) for said in (before, after)]
    change = losses[1] - losses[0]
    if groups is not None:
        numbers = np.unique(groups, return_inverse=True)[1]
        change = np.bincount(numbers, weights=change) / np.bincount(numbers)
    if len(change) < 2 or bootstrap_mean(change)[0] <= 0:
        return None
    old, new = (
        task.metrics(said, targets, classes, intervals=False, names=("ece",))["ece"] for said in (before, after)
    )
    if not new.value > old.value:
        return None
    return Harm(float(losses[0].mean()), float(losses[1].mean()), old.value, new.value)
