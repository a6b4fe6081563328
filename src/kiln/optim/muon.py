"""Muon for whole networks: hidden matrices and kernels by orthogonalised momentum, everything else by AdamW."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim._muon import muon

from kiln.errors import UsageError
from kiln.optim.groups import matches

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5
_SMALLEST_NORM = 1e-7


class Muon(torch.optim.AdamW):
    """Momentum whose update is orthogonalised by Newton-Schulz steps, as one optimizer for a whole network.

    torch's Muon takes 2-d parameters only. Here a convolution kernel counts as the matrix (out, in x height x width), and
    biases, norms, embeddings and the head are trained by AdamW, in groups of their own.
    Source: Jordan et al. 2024, kellerjordan.github.io/posts/muon; the rate's adjustment Liu et al. 2025, arXiv:2502.16982.

    Args:
        groups: parameter groups; one that holds both kinds is split in two.
        lr: of both. With `match_rms_adamw` an update of Muon is as long as one of AdamW, so that one rate suits both.
        momentum: of the hidden matrices.
        adjust_lr_fn: `match_rms_adamw`, `original` or `spectral_unclamped`: how a matrix's shape scales its rate.
        betas: of AdamW.
        eps: of AdamW.
        weight_decay: of groups that do not say.
        not_hidden: names or patterns of what AdamW trains although it is 2-d or more: the head, embeddings.
    Raises: UsageError: no parameter is a hidden matrix.
    """

    needs_hidden = True

    def __init__(
        self,
        groups: Any,
        lr: float = 1e-3,
        *,
        momentum: float = 0.95,
        adjust_lr_fn: str = "match_rms_adamw",
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
        not_hidden: Sequence[str] = (),
    ) -> None:
        choices = ("match_rms_adamw", "original", "spectral_unclamped")
        if adjust_lr_fn not in choices:
            raise UsageError("E102", f"adjust_lr_fn = {adjust_lr_fn!r}", got=adjust_lr_fn, choices=choices)
        if not 0 <= momentum < 1:
            raise UsageError("E102", f"momentum = {momentum!r}", expected="at least 0, below 1")
        self._not_hidden = tuple(not_hidden)
        self._own = {"momentum": momentum, "adjust_lr_fn": adjust_lr_fn}
        super().__init__(groups, lr, betas, eps, weight_decay)
        self.defaults.update(self._own)
        if self.needs_hidden and all(group["algorithm"] == "adamw" for group in self.param_groups):
            raise UsageError(
                "E103", "muon finds no hidden matrix or kernel here", expected="adamw, or other not_hidden"
            )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, split into what Muon and what AdamW trains."""
        for algorithm, part in self._split(param_group):
            super().add_param_group({**part, "algorithm": algorithm})

    def _split(self, group: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        params = [group["params"]] if isinstance(group["params"], Tensor) else list(group["params"])
        names = list(group.get("names", [""] * len(params)))
        rows: dict[str, list[int]] = {"muon": [], "adamw": []}
        for row, (parameter, name) in enumerate(zip(params, names, strict=True)):
            rows["muon" if is_hidden(name, parameter, self._not_hidden) else "adamw"].append(row)
        for algorithm, chosen in rows.items():
            if chosen:
                part = {**group, "params": [params[row] for row in chosen]}
                if "names" in group:
                    part["names"] = [names[row] for row in chosen]
                yield algorithm, {**self._own, **part} if algorithm == "muon" else part

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if group["algorithm"] == "muon":
                self._step_matrices(group)
        super().step()
        return loss

    def _init_group(self, group: Any, *lists: Any, **named: Any) -> bool:
        """AdamW's own step passes over the groups of Muon."""
        return False if group["algorithm"] == "muon" else bool(super()._init_group(group, *lists, **named))

    def _step_matrices(self, group: dict[str, Any]) -> None:
        trained = [parameter for parameter in group["params"] if parameter.grad is not None]
        for parameter in trained:
            if "momentum_buffer" not in self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        buffers = [self.state[parameter]["momentum_buffer"] for parameter in trained]
        muon(
            [_as_matrix(p, like=p) for p in trained],
            [_as_matrix(p.grad, like=p) for p in trained],
            [_as_matrix(buffer, like=p) for buffer, p in zip(buffers, trained, strict=True)],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            momentum=group["momentum"],
            nesterov=True,
            ns_coefficients=_COEFFICIENTS,
            ns_steps=NEWTON_SCHULZ_STEPS,
            eps=_SMALLEST_NORM,
            adjust_lr_fn=group["adjust_lr_fn"],
            has_complex=False,
        )


class StagedMuon(Muon):
    """Muon in one of several stages, which may train the head alone: AdamW then does all."""

    needs_hidden = False


def is_hidden(name: str, parameter: Tensor, not_hidden: Sequence[str]) -> bool:
    """Whether Muon trains a parameter itself: a matrix or kernel that no pattern leaves to AdamW."""
    return parameter.ndim >= 2 and not any(matches(pattern, name) for pattern in not_hidden)


def _as_matrix(tensor: Tensor, *, like: Tensor) -> Tensor:
    """(out, rest) of a kernel, each row in the order of `like`'s memory, so that any memory format gives a view."""
    order = sorted(range(1, tensor.ndim), key=like.stride, reverse=True)
    return tensor.permute(0, *order).flatten(1)
