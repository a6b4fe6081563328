"""L-BFGS, which evaluates its batch several times a step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class LBFGS(torch.optim.LBFGS):
    """Limited-memory BFGS with a line search that keeps the Wolfe conditions. Source: Nocedal and Wright 2006, ch. 7.

    As torch's, for any memory format, and with the line search on. One rate and no decay for all parameters; made for
    full batches and losses without dropout. Keeps `history_size` differences of the weights and of the gradient.

    Args:
        groups: one group.
        lr: length of the first step tried, in units of the quasi-Newton step; 1 is usual.
        max_iter: steps of the method within one step of the loop.
        max_eval: evaluations of the batch within one step; None is 1.25 max_iter.
        tolerance_grad: stop when no component of the gradient is larger.
        tolerance_change: stop when weights or loss change by less.
        history_size: differences to keep.
        line_search_fn: `strong_wolfe`, or None to always go `lr` far.
    """

    def __init__(
        self,
        groups: Any,
        lr: float = 1.0,
        *,
        max_iter: int = 20,
        max_eval: int | None = None,
        tolerance_grad: float = 1e-7,
        tolerance_change: float = 1e-9,
        history_size: int = 10,
        line_search_fn: str | None = "strong_wolfe",
    ) -> None:
        super().__init__(groups, lr, max_iter, max_eval, tolerance_grad, tolerance_change, history_size, line_search_fn)

    def _gather_flat_grad(self) -> Tensor:
        """As torch's, which can only flatten contiguous gradients; channels-last ones are copied."""
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._params]
        return torch.cat([part.reshape(-1) for part in parts])
