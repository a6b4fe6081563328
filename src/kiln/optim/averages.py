"""Averages of weights over training."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn


class Ema:
    """Exponential moving average of a model's parameters and buffers.

    The decay of update t is min(decay, (1 + t) / (10 + t)), so early averages are not dominated by the start.
    Integer buffers are copied. The average lives in `module`, a model of its own in eval mode.
    """

    def __init__(self, model: nn.Module, *, decay: float) -> None:
        self.decay = decay
        self.updates: int | Tensor = 0
        self.module = copy.deepcopy(model).eval().requires_grad_(False)
        self._model = model
        self._averaged: tuple[list[Tensor], list[Tensor]] = ([], [])
        self._copied: tuple[list[Tensor], list[Tensor]] = ([], [])

    @torch.no_grad()
    def update(self, *, unless: Tensor | None = None) -> None:
        """Take one step towards the model's present weights. Call once after each optimizer step.

        Args:
            unless: a 0-d tensor of 0 or 1 beside the weights; where it is 1 nothing moves and nothing is counted. The
                host does not read it, so an accelerator is not waited for.
        """
        if not self._averaged[0]:
            self._pair()
        mine, theirs = self._averaged
        if unless is None:
            decay = min(self.decay, (1 + float(self.updates)) / (10 + float(self.updates)))
            torch._foreach_lerp_(mine, theirs, 1.0 - decay)
            self.updates += 1
        else:
            counted = 1.0 - unless
            updates = torch.as_tensor(self.updates, dtype=unless.dtype, device=unless.device)
            decay = ((1 + updates) / (10 + updates)).clamp(max=self.decay)
            change = torch._foreach_sub(theirs, mine)
            torch._foreach_mul_(change, (1.0 - decay) * counted)
            torch._foreach_add_(mine, change)
            self.updates = updates + counted
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


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]
