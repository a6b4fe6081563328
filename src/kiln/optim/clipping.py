"""Ways to bound a gradient. Each takes parameters whose gradient is that of the whole batch, unscaled and averaged."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Clip = Callable[[Sequence[nn.Parameter]], Tensor | None]
"""Changes the gradients in place. May return the norm that the whole gradient had, which stays on the device."""


@dataclass(frozen=True)
class ClipNorm:
    """Scale the whole gradient down to a largest norm; its direction stays. Source: Pascanu et al. 2013, arXiv:1211.5063."""

    limit: float

    def __call__(self, parameters: Iterable[nn.Parameter]) -> Tensor:
        """Clip; returns the norm before."""
        parameters = list(parameters)  # gone through twice, which `model.parameters()` itself cannot be
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        torch.nn.utils.clip_grads_with_norm_(parameters, self.limit, norm)
        return norm


@dataclass(frozen=True)
class ClipValue:
    """Cut every component of the gradient to [-limit, limit]; its direction changes."""

    limit: float

    def __call__(self, parameters: Iterable[nn.Parameter]) -> None:
        """Clip."""
        torch.nn.utils.clip_grad_value_(parameters, self.limit)


class ClipAdaptive:
    """Bound each unit's gradient by its weights' norm (adaptive gradient clipping).

    A unit is one output of a layer: a row of its matrix, a kernel; of biases and norms all values together.
    Source: Brock et al. 2021, arXiv:2102.06171, eq. 3.

    Args:
        factor: largest ratio of the norms; 0.01 is usual.
        eps: norm that weights count for at least, so that zeros can leave zero.
        except_for: parameters that are not clipped; the paper leaves the last layer alone.
    """

    def __init__(self, factor: float, *, eps: float = 1e-3, except_for: Collection[nn.Parameter] = ()) -> None:
        self.factor, self.eps = factor, eps
        self._except_for = {id(parameter) for parameter in except_for}

    @torch.no_grad()
    def __call__(self, parameters: Iterable[nn.Parameter]) -> None:
        """Clip."""
        clipped = [p for p in parameters if p.grad is not None and id(p) not in self._except_for]
        for parameter in clipped:
            gradient = parameter.grad
            if gradient is None:
                continue
            limit = _unit_norms(parameter).clamp_(min=self.eps).mul_(self.factor)
            norm = _unit_norms(gradient)
            gradient.mul_(torch.where(norm < limit, 1.0, limit / norm.clamp(min=1e-6)))


def _unit_norms(tensor: Tensor) -> Tensor:
    dims = tuple(range(1, tensor.ndim)) if tensor.ndim > 1 else None
    return torch.linalg.vector_norm(tensor, dim=dims, keepdim=True)
