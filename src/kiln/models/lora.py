"""LoRA by `peft`: small trainable matrices beside frozen layers, folded into plain weights for every file.

Source: Hu et al. 2022, arXiv:2106.09685. A model with adapters is the same network with some layers replaced by peft's;
`merged` gives it back as it was, with the products of the adapters added to its weights.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from torch import nn

from kiln.errors import MissingExtraError, UsageError
from kiln.models.blocks import ordered_blocks

ADAPTERS = ("*.lora_A", "*.lora_B")
"""Patterns that name what is trained."""


def add_lora_(
    model: nn.Module, *, rank: int = 8, alpha: float = 16.0, targets: Sequence[str] = (), head: str | None = None
) -> tuple[str, ...]:
    """Put adapters beside layers of a model, in place. They change nothing until they are trained.

    Initial values come from torch's generator. Train `ADAPTERS` and the head; freeze the rest.

    Args:
        model: with linear layers or convolutions before its head.
        rank: of the adapters; 4 to 16 is usual.
        alpha: the product of the two matrices counts alpha / rank times.
        targets: ends of layer names, such as `attn.qkv`; without any, every linear layer of the backbone, or every
            convolution where it has none.
        head: name of the layer that makes the output, where it is not the last one registered.
    Returns: names of the layers that have an adapter.
    Raises: MissingExtraError: peft is not installed. UsageError: nothing fits `targets`.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise MissingExtraError("peft", extra="finetune", purpose="LoRA") from error
    modules = dict(model.named_modules())
    backbone = [name for block in ordered_blocks(model, head=head)[:-1] for name in block.atoms if name in modules]
    kinds = {kind: [name for name in backbone if isinstance(modules[name], kind)] for kind in (nn.Linear, nn.Conv2d)}
    layers = kinds[nn.Linear] or [name for name in kinds[nn.Conv2d] if modules[name].groups == 1]
    if targets:
        possible = [*kinds[nn.Linear], *kinds[nn.Conv2d]]
        for target in targets:
            if not any(_ends(name, target) for name in possible):
                raise UsageError(
                    "E101", f"lora_targets: {target!r} is no layer", got=target, choices=list(map(_last, possible))
                )
        layers = [name for name in possible if any(_ends(name, target) for target in targets)]
    if not layers:
        raise UsageError("E107", "LoRA finds no linear layer and no convolution before the head")
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=layers, bias="none")  # type: ignore[arg-type]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    inject_adapter_in_model(config, model)
    for parameter in trainable:  # peft switches all of them off, the head too; what to freeze is for the caller to say
        parameter.requires_grad_(True)
    return tuple(layers)


def has_adapters(model: nn.Module) -> bool:
    """Whether some layer of a model has an adapter."""
    return any(_base_layer(module) is not None for module in model.modules())


def merged(model: nn.Module) -> nn.Module:
    """The plain network that a model with adapters stands for: a copy; the model itself where it has none."""
    if not has_adapters(model):
        return model
    plain = copy.deepcopy(model)
    for name, module in list(plain.named_modules()):
        base = _base_layer(module)
        if base is not None:
            layer: Any = module
            layer.merge()
            plain.set_submodule(name, base)
    return plain


def _base_layer(module: nn.Module) -> nn.Module | None:
    return getattr(module, "base_layer", None) if hasattr(module, "lora_A") else None


def _ends(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _last(name: str) -> str:
    return name.rpartition(".")[2]
