"""Small operations on a network that was built for other images or classes: its first convolution, its last layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from kiln.errors import UsageError

# Classifiers beside the main one, in torchvision's googlenet and inception_v3 and in timm's inception_v3.
AUXILIARY_HEADS = ("aux1.fc2", "aux2.fc2", "AuxLogits.fc")


def first_conv(model: nn.Module) -> str | None:
    """The name of the convolution that sees the image: the first one registered."""
    return next((name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)), None)


def adapt_stem_weight(weight: Tensor, channels: int) -> Tensor | None:
    """First-layer weights for another number of input channels, by timm's rule; None where the rule does not reach.

    One channel gets the sum over the channels there are; several get them in turn, scaled by old / new.

    Args:
        weight: (out, in, height, width).
        channels: wanted.
    Returns: (out, channels, height, width).
    """
    from timm.models import adapt_input_conv  # here, because timm takes seconds to import

    try:
        return adapt_input_conv(channels, weight, base_chans=weight.shape[1])
    except (NotImplementedError, RuntimeError, ValueError):
        return None


def replace_stem_(model: nn.Module, channels: int) -> str | None:
    """Give the first convolution another number of input channels, keeping its weights by timm's rule.

    Returns: a note, or None when nothing had to change.
    Raises: UsageError: the model has no such convolution.
    """
    name = first_conv(model)
    old = model.get_submodule(name) if name else None
    if not isinstance(old, nn.Conv2d) or old.groups != 1:
        raise UsageError("E102", f"channels = {channels}: this model has no first convolution to adapt")
    if old.in_channels == channels:
        return None
    weight = adapt_stem_weight(old.weight.detach(), channels)
    if weight is None:
        raise UsageError("E102", f"channels = {channels}: the first convolution {name!r} cannot be adapted")
    with torch.device("meta"):
        new = nn.Conv2d(
            channels,
            old.out_channels,
            kernel_size=old.kernel_size,  # type: ignore[arg-type]
            stride=old.stride,  # type: ignore[arg-type]
            padding=old.padding,  # type: ignore[arg-type]
            dilation=old.dilation,  # type: ignore[arg-type]
            bias=old.bias is not None,
            padding_mode=old.padding_mode,
        )
    new.weight = nn.Parameter(weight)
    new.bias = old.bias
    model.set_submodule(str(name), new)
    return f"first convolution {name!r} adapted from {old.in_channels} to {channels} channels"


def last_layer(model: nn.Module, run: Callable[[], Any]) -> str | None:
    """The name of the linear layer or 1x1 convolution that makes the output: the last one that `run` executes."""
    executed: list[str] = []
    handles = [  # a hook knows its layer by name, because `run` may run a copy
        module.register_forward_hook(lambda _module, _args, _output, name=name: executed.append(name))
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d))
    ]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    main = [name for name in executed if name not in AUXILIARY_HEADS]
    return main[-1] if main else None


def replace_head_(model: nn.Module, name: str, num_classes: int) -> str:
    """Put a new layer of another width where the layer `name` is. Returns: a note.

    Raises: UsageError: the layer is neither linear nor a 1x1 convolution.
    """
    old = model.get_submodule(name)
    if isinstance(old, nn.Linear):
        new: nn.Module = nn.Linear(old.in_features, num_classes, bias=old.bias is not None)
        width = old.out_features
    elif isinstance(old, nn.Conv2d) and old.kernel_size == (1, 1) and old.groups == 1:
        new = nn.Conv2d(old.in_channels, num_classes, kernel_size=1, bias=old.bias is not None)
        width = old.out_channels
    else:
        raise UsageError("E102", f"the last layer {name!r} is a {type(old).__name__} that cannot be replaced")
    model.set_submodule(name, new)
    return f"last layer {name!r} replaced: {width} -> {num_classes} outputs"


def head_names(model: nn.Module) -> tuple[str, ...]:
    """The layers whose width is the number of classes: the classifier and auxiliary ones.

    timm states them; elsewhere it is the last linear layer or convolution registered.
    """
    stated = getattr(model, "pretrained_cfg", {}).get("classifier")
    heads = [stated] if isinstance(stated, str) else list(stated or ())
    if not heads:
        layers = [name for name, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
        heads = [name for name in layers if name not in AUXILIARY_HEADS][-1:]
    modules = dict(model.named_modules())
    return tuple(name for name in (*heads, *AUXILIARY_HEADS) if name in modules)


def set_dropout_(model: nn.Module, drop: float, drop_path: float) -> None:
    """Set the probabilities of the dropout and stochastic-depth layers that a torchvision model has.

    Stochastic depth grows linearly from 0 to `drop_path` with depth, as the paper and timm do.

    Raises: UsageError (E103): the model has no such layers, so the setting would have no effect.
    """
    from torchvision.ops import StochasticDepth

    dropouts = [module for module in model.modules() if isinstance(module, nn.Dropout)]
    paths = [module for module in model.modules() if isinstance(module, StochasticDepth)]
    for name, value, layers in (("drop", drop, dropouts), ("drop_path", drop_path, paths)):
        if value and not layers:
            raise UsageError("E103", f"{name} = {value} has no effect: this model has no such layer", hint=f"{name}=0")
    if drop:
        for module in dropouts:
            module.p = drop
    if drop_path:
        for index, module in enumerate(paths):
            module.p = drop_path * index / max(1, len(paths) - 1)
