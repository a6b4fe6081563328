"""Optimizers by name. Each takes parameter groups and flat settings and returns a torch optimizer, fused where it can."""

from __future__ import annotations

from typing import Any

import torch

Groups = list[dict[str, Any]]


def sgd(groups: Groups, *, lr: float, momentum: float = 0.9, nesterov: bool = True) -> torch.optim.Optimizer:
    """Stochastic gradient descent with (Nesterov) momentum. Weight decay is the groups' own."""
    optimizer = torch.optim.SGD(
        groups, lr=lr, momentum=momentum, nesterov=nesterov and momentum > 0, fused=_fused(groups)
    )
    if momentum > 0:
        # The fused kernel leaves the buffer uninitialised when the guard skips the very first step. Starting from
        # zeros gives the same first step, bit for bit.
        for group in groups:
            for parameter in group["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter, requires_grad=False)
    return optimizer


def adamw(
    groups: Groups, *, lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
) -> torch.optim.Optimizer:
    """Adam with decoupled weight decay. Source: Loshchilov and Hutter 2019, arXiv:1711.05101."""
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=_fused(groups))


def _fused(groups: Groups) -> bool:
    """Fused kernels exist for floating parameters on these devices; they also skip a bad step without waiting."""
    return all(
        p.is_floating_point() and p.device.type in ("cpu", "cuda", "xpu", "mps") for g in groups for p in g["params"]
    )
