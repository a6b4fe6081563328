"""Reduce the rate when a metric no longer improves: the one schedule that needs memory."""

from __future__ import annotations

import math
from typing import Any, Literal

from kiln.optim.schedules.rates import Evaluations, require


class Plateau:
    """A factor of all rates that falls when evaluations stop improving. As torch's ReduceLROnPlateau.

    `factor` multiplies whatever schedule there is: `set_rates(optimizer, schedule(step), scale=plateau.factor)`. Part of
    the checkpoint, so that a resumed run goes on counting.

    Args:
        reduce: the rate is multiplied by this, above 0 and below 1.
        patience: evaluations without an improvement that are waited for; the next one reduces.
        threshold: an improvement must be larger than this.
        threshold_mode: as a share of the best (rel), or as it is (abs).
        cooldown: evaluations after a reduction that do not count.
        min_fraction: the factor never falls below this.
        monitor: name of the metric in evaluations by `fit`; None takes the one that decides the best.
    """

    def __init__(
        self,
        *,
        reduce: float = 0.1,
        patience: Evaluations = 10,
        threshold: float = 1e-4,
        threshold_mode: Literal["rel", "abs"] = "rel",
        cooldown: Evaluations = 0,
        min_fraction: float = 0.0,
        monitor: str | None = None,
    ) -> None:
        require(0 < reduce < 1, "reduce", reduce, "a number > 0 and < 1")
        require(patience >= 0, "patience", patience, "a whole number >= 0")
        require(threshold >= 0, "threshold", threshold, "a number >= 0")
        require(threshold_mode in ("rel", "abs"), "threshold_mode", threshold_mode, "rel or abs")
        require(cooldown >= 0, "cooldown", cooldown, "a whole number >= 0")
        require(0 <= min_fraction <= 1, "min_fraction", min_fraction, "a number from 0 to 1")
        self.reduce, self.patience, self.cooldown, self.min_fraction = reduce, patience, cooldown, min_fraction
        self.threshold, self.threshold_mode, self.monitor = threshold, threshold_mode, monitor
        self.factor = 1.0
        self.best: float | None = None
        self.bad = 0
        self.cooling = 0

    def update(self, value: float, *, higher_is_better: bool = False) -> bool:
        """Take an evaluation into account; True when that reduced the rate. What is not finite is none."""
        if self._is_better(float(value), 1.0 if higher_is_better else -1.0):
            self.best, self.bad = float(value), 0
        else:
            self.bad += 1
        if self.cooling > 0:
            self.cooling, self.bad = self.cooling - 1, 0
        if self.bad <= self.patience:
            return False
        before, self.factor = self.factor, max(self.factor * self.reduce, self.min_fraction)
        self.cooling, self.bad = self.cooldown, 0
        return self.factor < before

    def _is_better(self, value: float, sign: float) -> bool:
        if self.best is None or not math.isfinite(value):
            return math.isfinite(value)
        relative = self.threshold_mode == "rel"
        bound = self.best * (1 + sign * self.threshold) if relative else self.best + sign * self.threshold
        return sign * value > sign * bound

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"factor": self.factor, "best": self.best, "bad": self.bad, "cooling": self.cooling}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state()`."""
        self.factor, self.best, self.bad, self.cooling = (state[name] for name in ("factor", "best", "bad", "cooling"))
