"""L2-SP: weights are pulled towards those that fine-tuning started from, instead of towards zero."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn

from kiln.batch import Batch
from kiln.engine.state import State
from kiln.losses.contract import as_terms, is_coupled


class StartingPoint:
    """The weights that a training started from, and the penalty for leaving them; a part of the state.

    The penalty is strength / 2 * sum((w - start)^2) over the trainable parameters that have a start, plus
    head_strength / 2 * sum(w^2) over the head, which was made anew and has none.
    Source: Li et al. 2018, arXiv:1802.01483, eq. 2 and 3 (their alpha and beta).

    The starting weights are in every checkpoint, so a resume needs nothing else; a checkpoint grows by one copy of them.

    Args:
        model: as it starts.
        strength: alpha; the paper takes 0.1 and 0.01 with a learning rate around 0.01.
        head: names of the parameters of the head.
        head_strength: beta; 0 leaves the head alone.
    """

    def __init__(self, model: nn.Module, *, strength: float, head: Collection[str], head_strength: float = 0.0) -> None:
        self.strength, self.head_strength = strength, head_strength
        self._model, self._head = model, frozenset(head)
        self._start = {
            name: parameter.detach().clone() for name, parameter in model.named_parameters() if name not in self._head
        }

    def penalty(self) -> Tensor:
        """The penalty where the weights stand now: a 0-d float32 tensor with a gradient."""
        pulled: list[Tensor] = []
        starts: list[Tensor] = []
        head: list[Tensor] = []
        for name, parameter in self._model.named_parameters():
            if parameter.requires_grad and name in self._start:
                pulled.append(parameter)
                starts.append(self._start[name])
            elif parameter.requires_grad and self.head_strength:
                head.append(parameter)
        device = next(self._model.parameters()).device
        with torch.autocast(device.type, enabled=False):
            parts = [
                self.strength / 2 * (weights.float() - start.float()).square().sum()
                for weights, start in zip(pulled, starts, strict=True)
            ]
            parts += [self.head_strength / 2 * weights.float().square().sum() for weights in head]
            return torch.stack(parts).sum() if parts else torch.zeros((), device=device)

    def state(self) -> dict[str, Any]:
        """The starting weights, by name."""
        return dict(self._start)

    def load_state(self, state: dict[str, Any]) -> None:
        """Take the starting weights of a checkpoint."""
        for name, start in self._start.items():
            start.copy_(state[name])


def with_penalty(
    forward_loss: Callable[[State, Batch], Any], penalty: Callable[[], Tensor]
) -> Callable[[State, Batch], Any]:
    """Add a penalty on weights to what a `forward_loss` returns, once per step however the batch is cut.

    Every sample's value grows by the penalty, and the step takes their weighted mean, which grows by it exactly once.
    """

    def penalised(state: State, batch: Batch) -> Any:
        terms = as_terms(forward_loss(state, batch), len(batch))
        return terms._replace(values=terms.values + penalty())

    penalised.coupled = is_coupled(forward_loss)  # pyright: ignore[reportFunctionMemberAccess]
    return penalised
