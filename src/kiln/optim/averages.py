"""Averages of weights over training."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from kiln.errors import UsageError


class Average:
    """A copy of a model that follows its weights; it is what is evaluated and ships.

    Attributes:
        module: the average, a model of its own in eval mode.
        updates: how many weights are in it.
    """

    needs_statistics = False
    """Whether running statistics of normalisation must be measured again before the average is used."""

    def __init__(self, model: nn.Module) -> None:
        self.updates: int | Tensor = 0
        self.module = copy.deepcopy(model).eval().requires_grad_(False)
        self._model = model
        self._averaged: tuple[list[Tensor], list[Tensor]] = ([], [])
        self._copied: tuple[list[Tensor], list[Tensor]] = ([], [])

    def update(self, *, unless: Tensor | None = None) -> None:
        """Take the model's present weights in. Call once after each optimizer step.

        Args:
            unless: a 0-d tensor of 0 or 1 beside the weights; where it is 1 nothing moves and nothing is counted. The
                host does not read it, so an accelerator is not waited for.
        """
        raise NotImplementedError

    @property
    def model(self) -> nn.Module:
        """What is evaluated now: the average, or the model itself while the average holds nothing."""
        return self.module

    def tensors_of(self, tree: dict[str, Any]) -> dict[str, Tensor]:
        """What was evaluated at a checkpoint, from its tree."""
        return tree["average"]["model"]

    @torch.no_grad()
    def _move(self, share: float | Tensor) -> None:
        """Go that share of the way to the model's weights; a tensor is not read by the host."""
        if not self._averaged[0]:
            self._pair()
        mine, theirs = self._averaged
        if isinstance(share, Tensor):
            change = torch._foreach_sub(theirs, mine)
            torch._foreach_mul_(change, share)
            torch._foreach_add_(mine, change)
        else:
            torch._foreach_lerp_(mine, theirs, share)
        if self._copied[0]:
            torch._foreach_copy_(*self._copied)

    def _pair(self) -> None:
        """Find the tensors late: a step may first replace buffers by views of one flat tensor."""
        for mine, theirs in zip(_tensors(self.module), _tensors(self._model), strict=True):
            target = self._averaged if mine.is_floating_point() else self._copied
            target[0].append(mine)
            target[1].append(theirs.detach())

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"updates": int(self.updates), "model": dict(self.module.state_dict())}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state()`."""
        self.updates = int(state["updates"])
        self.module.load_state_dict(state["model"])


class Ema(Average):
    """Exponential moving average of a model's parameters and buffers.

    The decay of update t is min(decay, (1 + t) / (10 + t)), so early averages are not dominated by the start.
    Integer buffers are copied.

    Raises: UsageError: a decay below 0, of 1 or more, or not a number.
    """

    def __init__(self, model: nn.Module, *, decay: float) -> None:
        if not 0 <= decay < 1:
            raise UsageError("E102", f"decay = {decay!r}", expected="at least 0, below 1", hint="0.999 is usual")
        super().__init__(model)
        self.decay = decay

    def update(self, *, unless: Tensor | None = None) -> None:
        """See `Average.update`."""
        if unless is None:
            self._move(1.0 - min(self.decay, (1 + float(self.updates)) / (10 + float(self.updates))))
            self.updates += 1
            return
        counted = 1.0 - unless
        updates = torch.as_tensor(self.updates, dtype=unless.dtype, device=unless.device)
        decay = ((1 + updates) / (10 + updates)).clamp(max=self.decay)
        self._move((1.0 - decay) * counted)
        self.updates = updates + counted


class Swa(Average):
    """Stochastic weight averaging: the plain mean of the weights at every `every`-th step from `start` on.

    Until the first of them there is no average, and the model itself is evaluated. Running statistics of normalisation
    are those of no weights that were ever trained: measure them again with
    `kiln.engine.statistics.renew_statistics` before use, as the loop does. Source: Izmailov et al. 2018,
    arXiv:1803.05407.

    Args:
        model: to follow.
        start: the first optimizer step, counted from 1, whose weights are in.
        every: steps between two of them; an epoch is usual.
    Raises: UsageError: either is below 1.
    """

    needs_statistics = True

    def __init__(self, model: nn.Module, *, start: int, every: int) -> None:
        super().__init__(model)
        for name, value in (("start", start), ("every", every)):
            if value < 1:
                raise UsageError("E102", f"{name} = {value}", expected="a number of steps, at least 1")
        self.start, self.every, self.steps = start, every, 0

    def update(self, *, unless: Tensor | None = None) -> None:
        """See `Average.update`."""
        self.steps += 1
        if self.steps < self.start or (self.steps - self.start) % self.every:
            return
        if unless is None:
            self._move(1.0 / (float(self.updates) + 1.0))
            self.updates += 1
            return
        updates = torch.as_tensor(self.updates, dtype=unless.dtype, device=unless.device)
        self._move((1.0 - unless) / (updates + 1.0))
        self.updates = updates + (1.0 - unless)

    @property
    def model(self) -> nn.Module:
        """See `Average.model`."""
        return self.module if int(self.updates) else self._model

    def tensors_of(self, tree: dict[str, Any]) -> dict[str, Tensor]:
        """See `Average.tensors_of`."""
        return tree["average"]["model"] if tree["average"]["updates"] else tree["model"]

    def state(self) -> dict[str, Any]:
        """See `Average.state`."""
        return {**super().state(), "steps": self.steps}

    def load_state(self, state: dict[str, Any]) -> None:
        """See `Average.load_state`."""
        super().load_state(state)
        self.steps = int(state["steps"])


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]
