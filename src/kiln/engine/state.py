"""Everything about a training that a resume needs, in one place."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from kiln.engine.guard import BufferGuard
from kiln.errors import ArtifactError
from kiln.optim.averages import Average
from kiln.optim.groups import GROUP_KEYS
from kiln.optim.schedules import Plateau

if TYPE_CHECKING:
    from kiln.engine.stages import Stages


class Part(Protocol):
    """A stateful part. `state()` is a tree of dicts, lists, numbers, strings and tensors."""

    def state(self) -> dict[str, Any]: ...  # noqa: D102
    def load_state(self, state: dict[str, Any], /) -> None: ...  # noqa: D102


class Tracker:
    """The best evaluation so far, and how long ago it was.

    Of evaluations alike in the metric that decides, the one of the lowest validation loss is the best, then the earliest: a
    few images soon are all right, long before the model has learnt what there is.

    Args:
        monitor: name of the metric that decides.
        patience: stop after this many evaluations without an improvement; None never stops.
        min_delta: what counts as an improvement for patience must be larger than this; the best is the best regardless.
        higher_is_better: of plain numbers, and of metrics that do not say.
        keep_last: ship the last weights and not the best ones.
    """

    def __init__(
        self,
        monitor: str,
        *,
        patience: int | None = None,
        min_delta: float = 0.0,
        higher_is_better: bool = True,
        keep_last: bool = False,
    ) -> None:
        self.monitor, self.higher_is_better, self.keep_last = monitor, higher_is_better, keep_last
        self.patience, self.min_delta = patience, min_delta
        self.best: float | None = None
        self.best_step = 0
        self.best_loss: float | None = None
        self.improved_to: float | None = None
        self.evaluations_since_improvement = 0

    def update(self, metric: Any, step: int, *, loss: Any = None) -> bool:
        """Record an evaluation; True when it is the best so far. A NaN never is.

        `metric` is a number, or has a `value` and may say `higher_is_better`; `loss`, which breaks ties, likewise, or None.
        """
        value = float(getattr(metric, "value", metric))
        sign = 1.0 if getattr(metric, "higher_is_better", self.higher_is_better) else -1.0
        if value == value and (self.improved_to is None or sign * (value - self.improved_to) > self.min_delta):
            self.improved_to, self.evaluations_since_improvement = value, 0
        else:
            self.evaluations_since_improvement += 1
        loss = None if loss is None else float(getattr(loss, "value", loss))
        if value == value and (self.best is None or sign * (value - self.best) > 0 or self._breaks_tie(value, loss)):
            self.best, self.best_step, self.best_loss = value, step, loss
            return True
        return False

    def _breaks_tie(self, value: float, loss: float | None) -> bool:
        return value == self.best and loss is not None and self.best_loss is not None and loss < self.best_loss

    @property
    def exhausted(self) -> bool:
        """Whether patience has run out."""
        return self.patience is not None and self.evaluations_since_improvement >= self.patience

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {
            "best": self.best,
            "best_step": self.best_step,
            "best_loss": self.best_loss,
            "improved_to": self.improved_to,
            "since": self.evaluations_since_improvement,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state()`."""
        self.best, self.best_step = state["best"], state["best_step"]
        self.best_loss = state.get("best_loss")  # checkpoints of before ties were broken have none
        self.improved_to, self.evaluations_since_improvement = state["improved_to"], state["since"]


@dataclass
class State:
    """A training in progress.

    Attributes:
        model: the bare module; its parameter names are the names in every file.
        optimizer: a torch optimizer over the model's parameters.
        forward: what a step calls: the model, or the model inside a strategy's wrapper.
        average: of the weights, if one is kept.
        tracker: the best evaluation so far, if there are evaluations.
        plateau: reduces the rates when evaluations stop improving, if that is wanted.
        stages: of fine-tuning, if there are any: what is trained from which step on.
        parts: further stateful parts under fixed names.
        step: optimizer steps done; also the next step's number.
        epoch: epochs completed.
        loss_sum: sum over samples of the loss since the epoch began, as far as it was read from the device.
        weight_sum: sum of those samples' weights.
        skipped: steps skipped by the guard in this run.
        skipped_in_a_row: the same, since the last good step.
        log: decisions taken on the way, each stamped with its step.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    forward: Callable[..., Any] = None  # type: ignore[assignment] - the model, when nothing is given
    average: Average | None = None
    tracker: Tracker | None = None
    plateau: Plateau | None = None
    stages: Stages | None = None
    parts: dict[str, Part] = field(default_factory=dict)
    step: int = 0
    epoch: int = 0
    loss_sum: float = 0.0
    weight_sum: float = 0.0
    skipped: int = 0
    skipped_in_a_row: int = 0
    log: list[dict[str, Any]] = field(default_factory=list)
    stop_reason: str | None = None
    wants_save: bool = False

    def __post_init__(self) -> None:
        self.forward = self.forward or self.model
        self.device = next(self.model.parameters()).device
        # Before any wrapper: DistributedDataParallel remembers the buffers that it finds.
        self.buffers = BufferGuard(self.model)

    def add_loss(self, mean: float, weight: float) -> None:
        """Add a good step's mean loss to the running loss of the epoch."""
        self.loss_sum += mean * weight
        self.weight_sum += weight

    def take_mean_loss(self) -> float:
        """The mean loss of the epoch that ends, and start afresh. NaN when every step was skipped."""
        mean = self.loss_sum / self.weight_sum if self.weight_sum else math.nan
        self.loss_sum = self.weight_sum = 0.0
        return mean

    def request_stop(self, reason: str) -> None:
        """Ask the loop to stop at the next step boundary, after saving. The first reason stands."""
        self.stop_reason = self.stop_reason or reason

    def decide(self, what: str, **facts: Any) -> None:
        """Write an entry into the decision log; it is saved with the next checkpoint."""
        self.log.append({"step": self.step, "what": what, **facts})

    @property
    def kept_step(self) -> int:
        """The step whose weights are the model so far: the best one, or the last where that ships; 0 before any."""
        return self.step if self.tracker is None or self.tracker.keep_last else self.tracker.best_step

    def evaluated_model(self) -> nn.Module:
        """The weights that are evaluated, compete for best and ship: the average when there is one."""
        return self.model if self.average is None else self.average.model

    def state(self) -> dict[str, Any]:
        """The whole training as a tree, tensors by parameter name (they are references: encode before going on)."""
        tree: dict[str, Any] = {
            "model": dict(self.model.state_dict()),
            "optimizer": optimizer_state(self.model, self.optimizer),
            "progress": {
                "step": self.step,
                "epoch": self.epoch,
                "loss_sum": self.loss_sum,
                "weight_sum": self.weight_sum,
                "skipped": self.skipped,
                "skipped_in_a_row": self.skipped_in_a_row,
                "log": list(self.log),
            },
            "parts": {name: part.state() for name, part in self.parts.items()},
        }
        if self.average is not None:
            tree["average"] = self.average.state()
        if self.tracker is not None:
            tree["tracker"] = self.tracker.state()
        if self.plateau is not None:
            tree["plateau"] = self.plateau.state()
        if self.stages is not None:
            tree["stages"] = self.stages.state()
        return tree

    def load_state(self, tree: dict[str, Any]) -> None:
        """Continue from `state()`.

        Raises: ArtifactError: the tree is of another model, or lacks a part that this training has.
        """
        optional = {"average": self.average, "tracker": self.tracker, "plateau": self.plateau, "stages": self.stages}
        expected = {"model", "optimizer", "progress", "parts", *(k for k, v in optional.items() if v is not None)}
        if set(tree) != expected or set(tree["parts"]) != set(self.parts):
            found = sorted({*tree, *tree.get("parts", ())})
            raise ArtifactError(
                "E304", f"the checkpoint holds {', '.join(found)}", expected=", ".join(sorted({*expected, *self.parts}))
            )
        load_model(self.model, tree["model"])
        if self.stages is not None:
            self.stages.load_state(tree["stages"], self)  # first, as it decides what the optimizer is over
        load_optimizer_state(self.model, self.optimizer, tree["optimizer"])
        progress = tree["progress"]
        self.step, self.epoch = progress["step"], progress["epoch"]
        self.loss_sum, self.weight_sum = progress["loss_sum"], progress["weight_sum"]
        self.skipped, self.skipped_in_a_row = progress["skipped"], progress["skipped_in_a_row"]
        self.log = list(progress["log"])
        for name, part in self.parts.items():
            part.load_state(tree["parts"][name])
        if self.average is not None:
            self.average.load_state(tree["average"])
        if self.tracker is not None:
            self.tracker.load_state(tree["tracker"])
        if self.plateau is not None:
            self.plateau.load_state(tree["plateau"])


def load_model(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Copy tensors into a model by name; every name must be there, and no other.

    Raises: ArtifactError: names or shapes differ.
    """
    own = model.state_dict()
    problems = [f"missing: {name}" for name in own.keys() - tensors.keys()]
    problems += [f"unexpected: {name}" for name in tensors.keys() - own.keys()]
    problems += [
        f"{name}: {tuple(tensors[name].shape)}, the model has {tuple(own[name].shape)}"
        for name in own.keys() & tensors.keys()
        if tensors[name].shape != own[name].shape
    ]
    if problems:
        raise ArtifactError("E304", "the saved weights do not fit the model", details=sorted(problems)[:20])
    model.load_state_dict(tensors)


def optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimizer's state keyed by parameter name, so that it survives another order of parameters or groups.

    `groups` holds what an optimizer itself counts by group (Lamb's and Adan's step), under each parameter's name, and
    `more` what it adds to its own `state_dict` (Kron's random state).

    Raises: ArtifactError: the optimizer keeps state beside its parameters.
    """
    names: dict[Any, str] = {parameter: name for name, parameter in model.named_parameters()}
    if other := [key for key in optimizer.state if key not in names]:
        what = f"{type(optimizer).__name__} keeps state for {other[0]!r:.40}, which is no parameter of the model"
        raise ArtifactError("E306", what, expected="an optimizer over the model's parameters")
    return {
        "state": {names[parameter]: dict(values) for parameter, values in optimizer.state.items()},
        "groups": {
            names[parameter]: counted
            for group in optimizer.param_groups
            if (counted := _counted(group, optimizer))
            for parameter in group["params"]
        },
        "more": {k: v for k, v in optimizer.state_dict().items() if k not in ("state", "param_groups")},
    }


def load_optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer, tree: dict[str, Any]) -> None:
    """Restore `optimizer_state`, in each parameter's own memory format and device.

    Raises: ArtifactError: the state names a parameter that the model does not have.
    """
    parameters = dict(model.named_parameters())
    on_device = bool(optimizer.defaults.get("fused") or optimizer.defaults.get("capturable"))
    unknown = sorted(tree["state"].keys() - parameters.keys())
    if unknown:
        raise ArtifactError("E304", "the optimizer's state is of another model", details=unknown[:20])
    optimizer.state.clear()
    for name, values in tree["state"].items():
        parameter = parameters[name]
        optimizer.state[parameter] = {
            # Step counters lie beside the parameter only in fused and capturable optimizers.
            key: _like(value, parameter, on_device or key != "step")
            for key, value in values.items()
        }
    names = {parameter: name for name, parameter in parameters.items()}
    for group in optimizer.param_groups:
        known = [tree["groups"][names[p]] for p in group["params"] if names[p] in tree["groups"]]
        group.update({key: copy.deepcopy(value) for key, value in (known[0] if known else {}).items()})
    if tree["more"]:
        optimizer.load_state_dict({**optimizer.state_dict(), **tree["more"]})


def _counted(group: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What an optimizer keeps in a group that nobody set."""
    return {
        key: value
        for key, value in group.items()
        if key not in optimizer.defaults and key not in GROUP_KEYS and isinstance(value, int | float | Tensor)
    }


def _like(value: Any, parameter: Tensor, on_device: bool) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_like(item, parameter, on_device) for item in value)
    if not isinstance(value, Tensor):
        return value
    if value.shape == parameter.shape and value.ndim:
        return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
    return value.to(parameter.device, copy=True) if on_device else value.clone()
