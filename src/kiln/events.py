"""What a training loop tells. Consumers observe; nothing they do can change what a resumed run would do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(slots=True, frozen=True)
class StepDone:
    """One optimizer step is done (or was skipped by the guard).

    `loss` is a 0-d tensor on the device: reading it waits for the device, so read it only when it is shown.
    """

    step: int
    epoch: int
    loss: Any
    lr: float
    num_samples: int


@dataclass(slots=True, frozen=True)
class EpochDone:
    """All samples of an epoch were seen. `train_loss` is the exact mean over them."""

    epoch: int
    step: int
    train_loss: float


@dataclass(slots=True, frozen=True)
class Evaluated:
    """The model was evaluated on a split. `metrics` maps names to `kiln.metrics.Metric`."""

    step: int
    epoch: int
    split: str
    metrics: Mapping[str, Any]
    is_best: bool


@dataclass(slots=True, frozen=True)
class Saved:
    """A checkpoint is committed: it survives a power cut from here on."""

    step: int
    path: Path


@dataclass(slots=True, frozen=True)
class Skipped:
    """Some samples or a whole step did not count: `reason` says why, `indices` which."""

    step: int
    reason: str
    indices: tuple[int, ...] = ()


@dataclass(slots=True, frozen=True)
class StageBegan:
    """From the next step on, other parts of the model are trained; what was frozen until now was proved unchanged."""

    step: int
    trains: str
    num_trainable: int
    num_parameters: int


@dataclass(slots=True, frozen=True)
class Stopped:
    """The loop ended. `reason` is `done`, `early_stop`, or what `request_stop` was given."""

    step: int
    epoch: int
    reason: str


Event = StepDone | EpochDone | Evaluated | Saved | Skipped | StageBegan | Stopped
