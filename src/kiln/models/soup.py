"""The average of the weights of several models of one architecture.

Source: Wortsman et al. 2022, Model soups, arXiv:2203.05482. It works for models that were fine-tuned from one start; the
average of models that began apart is no model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from kiln.errors import ArtifactError, UsageError
from kiln.models.spec import ModelSpec

_COUNTER = "num_batches_tracked"
_SHARED = ("name", "num_classes", "channels", "img_size", "mean", "std", "per_image")
_RUNNING = ("running_mean", "running_var")


def average_states(states: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The plain mean of weights, summed in float64, one model in memory at a time.

    Integers are not averaged: where they differ, the largest count of batches is taken, and anything else is refused. Names
    that share a tensor get equal means, and share it again when they are loaded.

    Args:
        states: as from `model.state_dict()`, of one architecture.
    Returns: a new tensor for each name, of the first state's type.
    Raises: ArtifactError (E304): names, shapes or whole numbers do not agree. UsageError (E102): there are no states.
    """
    sums: dict[str, Tensor] = {}
    types: dict[str, torch.dtype] = {}
    count = 0
    for state in states:
        count += 1
        if count == 1:
            types = {name: value.dtype for name, value in state.items()}
            sums = {name: _exact(value).clone() for name, value in state.items()}
            continue
        odd = sorted(state.keys() ^ sums.keys())
        odd += [name for name in state.keys() & sums.keys() if state[name].shape != sums[name].shape]
        if odd:
            what = f"the weights of model {count} are of another architecture than those of the first"
            raise ArtifactError("E304", what, details=odd[:20])
        for name, value in state.items():
            sums[name] = _together(name, sums[name], _exact(value))
    if not count:
        raise UsageError("E102", "no states to average", expected="at least one")
    return {
        name: (value / count if value.is_floating_point() else value).to(types[name]) for name, value in sums.items()
    }


def require_alike(first: ModelSpec, other: ModelSpec, *, names: Sequence[str]) -> None:
    """Hold that two models are of one architecture; rates of dropout may differ, being no part of what is averaged.

    Raises: ArtifactError (E304): they are not; `names` are what the two are called.
    """
    odd = [field for field in _SHARED if getattr(first, field) != getattr(other, field)]
    if not odd and _lasting(first) != _lasting(other):
        odd = ["kwargs"]
    if odd:
        differences = [f"{field}: {getattr(first, field)!r} and {getattr(other, field)!r}" for field in odd]
        what = f"{names[0]} and {names[1]} are of different architectures"
        hint = "kiln ensemble puts different models together"
        raise ArtifactError("E304", what, details=differences, hint=hint)


def moving_norms(states: Iterable[Mapping[str, Tensor]]) -> tuple[set[str], set[str]]:
    """The layers with running statistics: those that differ between models, and those that were held fixed in all."""
    first: dict[str, Tensor] = {}
    moving: set[str] = set()
    for state in states:
        own = {name: value for name, value in state.items() if name.rpartition(".")[2] in _RUNNING}
        first = first or {name: value.clone() for name, value in own.items()}
        moving |= {name.rpartition(".")[0] for name, value in own.items() if not torch.equal(value, first[name])}
    return moving, {name.rpartition(".")[0] for name in first} - moving


def _exact(value: Tensor) -> Tensor:
    return value.detach().cpu().double() if value.is_floating_point() else value.detach().cpu()


def _together(name: str, total: Tensor, value: Tensor) -> Tensor:
    if total.is_floating_point():
        return total + value
    if torch.equal(total, value):
        return total
    if name.rpartition(".")[2] == _COUNTER:
        return torch.maximum(total, value)
    raise ArtifactError("E304", f"{name} holds whole numbers that differ between the models", expected="equal ones")


def _lasting(spec: ModelSpec) -> dict[str, object]:
    return {name: value for name, value in spec.kwargs.items() if "drop" not in name}
