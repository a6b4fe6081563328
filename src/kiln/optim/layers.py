"""What a model's structure says about its parameters: how deep each lies, and which must not be decayed."""

from __future__ import annotations

from typing import Any

from torch import nn

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_UNDECAYED = {
    *("pos_embed", "pos_embedding", "class_token", "cls_token", "relative_position_bias_table", "layer_scale"),
}
"""What timm and torchvision call embeddings and scales, in models that do not say what they exempt."""


def undecayed_names(model: nn.Module) -> set[str]:
    """Names of the parameters that weight decay must leave alone.

    Biases, anything below 2-d, everything that a norm layer holds (told by its type, whatever its shape), and position
    embeddings and class tokens: as the model's own `no_weight_decay()` says (timm), or else by their usual names.
    """
    stated: Any = getattr(model, "no_weight_decay", None)
    exempt: Any = stated() if callable(stated) else None
    found = set()
    for prefix, module in model.named_modules():
        for key, parameter in module.named_parameters(prefix=prefix, recurse=False):
            leaf = key.rpartition(".")[2]
            named = leaf in _UNDECAYED if exempt is None else key in exempt or leaf in exempt
            if parameter.ndim < 2 or leaf == "bias" or named or is_norm(module):
                found.add(key)
    return found


def is_norm(module: nn.Module) -> bool:
    """Whether a module normalises: norm layers of torch, timm and torchvision say so in a class name and hold weights."""
    return any("Norm" in kind.__name__ for kind in type(module).__mro__) and bool(module._parameters)


def layer_ids(model: nn.Module) -> dict[str, int]:
    """The depth of each parameter by name, 0 at the images.

    timm's models state their layers (`group_matcher`). Elsewhere layers are the modules in the order in which they are
    registered: plain containers, and any module with more than half of all parameters, are opened; what is left is one
    layer each, a norm layer together with what stands before it.
    """
    matcher: Any = getattr(model, "group_matcher", None)
    if callable(matcher):
        from timm.models import group_parameters

        return dict(group_parameters(model, matcher(coarse=False), reverse=True))
    half = sum(parameter.numel() for parameter in model.parameters()) / 2
    ids: dict[str, int] = {}
    _number(model, "", half, ids)
    return ids


def _number(module: nn.Module, prefix: str, half: float, ids: dict[str, int]) -> None:
    first = max(ids.values(), default=-1) + 1
    for key, child in module.named_children():
        place = f"{prefix}.{key}" if prefix else key
        num = sum(parameter.numel() for parameter in child.parameters())
        if any(True for _ in child.children()) and (type(child) in _CONTAINERS or num > half):
            _number(child, place, half, ids)
            continue
        last = max(ids.values(), default=-1)
        own = last if is_norm(child) and last >= 0 else last + 1
        ids.update((name, own) for name, _ in child.named_parameters(prefix=place) if name not in ids)
    for name, _ in module.named_parameters(prefix=prefix, recurse=False):
        ids[name] = first  # tokens and embeddings enter where the module's first layer does
