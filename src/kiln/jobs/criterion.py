"""A recipe's `loss` becomes a module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from kiln.jobs.intake import Intake
from kiln.jobs.resolve import Settings
from kiln.names import LOSSES, resolve


def make_loss(settings: Settings, intake: Intake) -> nn.Module:
    """The loss that training makes small: the task's own, a named one, or the user's."""
    name, smoothing = settings["loss.name"], settings["loss.smoothing"]
    if name == "auto":
        return intake.task.default_loss(smoothing=smoothing)
    made = resolve(LOSSES, name, kind="loss")
    if name in ("cross_entropy", "binary_cross_entropy"):
        return made(smoothing=smoothing)
    return made() if isinstance(made, type) else _FunctionLoss(made)


class _FunctionLoss(nn.Module):
    """A user's loss function as a module."""

    def __init__(self, function: Callable[[Any, Any], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, outputs: Any, targets: Any) -> Any:
        return self.function(outputs, targets)
