"""Sharpness-aware minimisation: the gradient is taken where, close by, the loss is largest."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from kiln.errors import UsageError


class SharpnessAware:
    """Moves weights uphill for a second look at the same batch. A step with it costs two.

    Source: Foret et al. 2021, arXiv:2010.01412, eq. 2; adaptive: Kwon et al. 2021, arXiv:2102.11600, with eta = 0.01 for
    every parameter.

    Args:
        rho: how far uphill; 0.05 is usual, 0.5 to 2 for the adaptive form.
        adaptive: measure the distance relative to each weight's size, so that rescaling a layer changes nothing.
    Raises: UsageError: a rho that is not above 0.
    """

    eta = 0.01

    def __init__(self, rho: float, *, adaptive: bool = False) -> None:
        if not 0 < rho < math.inf:
            raise UsageError("E102", f"rho = {rho!r}", expected="a finite number > 0", hint="0.05 is usual")
        self.rho, self.adaptive = rho, adaptive

    @contextmanager
    def uphill(self, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
        """Within, the weights are up the slope of their present gradients; afterwards they are bit for bit as before.

        Parameters without a gradient do not move.
        """
        moved: list[Tensor] = [parameter for parameter in parameters if parameter.grad is not None]
        with torch.no_grad():
            kept = [parameter.detach().clone() for parameter in moved]
            torch._foreach_add_(moved, self._ascent(moved))
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(moved, kept)

    def _ascent(self, parameters: Sequence[Tensor]) -> list[Tensor]:
        """rho g / |g|; adaptive: rho T^2 g / |T g| with T = |w| + eta."""
        gradients = [parameter.grad.detach() for parameter in parameters if parameter.grad is not None]
        if not self.adaptive:
            scale = self.rho / (torch.nn.utils.get_total_norm(gradients) + 1e-12)
            return list(torch._foreach_mul(gradients, scale))
        sizes = torch._foreach_abs([parameter.detach() for parameter in parameters])
        torch._foreach_add_(sizes, self.eta)
        scaled = torch._foreach_mul(gradients, sizes)
        scale = self.rho / (torch.nn.utils.get_total_norm(list(scaled)) + 1e-12)
        torch._foreach_mul_(scaled, sizes)
        return list(torch._foreach_mul(scaled, scale))
