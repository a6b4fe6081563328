"""Which parameter is trained at which rate and with which decay."""

from __future__ import annotations

from typing import Any

from torch import nn

from kiln.errors import UsageError


def parameter_groups(model: nn.Module, *, lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """One group per weight decay: matrices and kernels decay, biases and norm parameters (anything below 2-d) do not.

    Without any decay that is one group, which costs the optimizer half as many calls.
    Each group carries `names`, the parameters' names in its order, and `base_lr`, which schedules multiply.
    Frozen parameters are in no group.

    Raises: UsageError: nothing is trainable.
    """
    by_decay: dict[float, list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            by_decay.setdefault(weight_decay if parameter.ndim > 1 else 0.0, []).append((name, parameter))
    if not by_decay:
        raise UsageError("E107", "the model has no trainable parameter")
    return [
        {
            "params": [parameter for _, parameter in members],
            "names": [name for name, _ in members],
            "lr": lr,
            "base_lr": lr,
            "weight_decay": decay,
        }
        for decay, members in by_decay.items()
    ]


def check_groups(model: nn.Module, groups: list[dict[str, Any]]) -> None:
    """Hold that every trainable parameter is in exactly one group, and no frozen one in any.

    Raises: UsageError: with the names at fault.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    seen: dict[int, int] = {}
    for group in groups:
        for parameter in group["params"]:
            seen[id(parameter)] = seen.get(id(parameter), 0) + 1
    trainable = {id(p) for p in model.parameters() if p.requires_grad}
    problems = [f"trainable, but in no group: {names[i]}" for i in trainable - set(seen)]
    problems += [
        f"frozen, but in a group: {names.get(i, 'a parameter of another model')}" for i in set(seen) - trainable
    ]
    problems += [f"in {count} groups: {names.get(i, '?')}" for i, count in seen.items() if count > 1]
    if problems:
        raise UsageError(
            "E107", f"{len(problems)} parameters do not fit the optimizer's groups", details=sorted(problems)[:20]
        )
