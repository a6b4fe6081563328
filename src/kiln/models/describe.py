"""What a network is made of and what it costs: layers, shapes, parameters, FLOPs, memory for activations."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from kiln.models.outputs import main_and_auxiliary
from kiln.models.sizes import SHAPE_ERRORS, mode


@dataclass(frozen=True)
class Layer:
    """One module without children: its name, kind, output shape for one image, and own parameters."""

    name: str
    kind: str
    shape: tuple[int, ...]
    parameters: int


@dataclass(frozen=True)
class Costs:
    """What one image costs.

    Attributes:
        layers: in the order in which they run.
        parameters: of the whole network.
        flops: of a forward pass; a multiply-add counts as two.
        activation_bytes: what a training step keeps for the backward pass, in float32, per image.
    """

    layers: tuple[Layer, ...]
    parameters: int
    flops: int
    activation_bytes: int


def costs_of(model: nn.Module, *, channels: int, img_size: int) -> Costs:
    """Count a network's costs at one image size, without computing where the network allows that.

    Args:
        model: unchanged.
        channels: of the image.
        img_size: height and width in pixels.
    """
    shape = (channels, img_size, img_size)
    layers, flops = _forward_costs(model, shape)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Costs(tuple(layers), parameters, flops, _activation_bytes(model, shape))


def _run(model: nn.Module, shape: tuple[int, int, int], count: int) -> Any:
    """A forward pass on the meta device, or for real on a copy where tensors outside the state make that impossible."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    empty = {name: value.detach().to("meta").requires_grad_(value.requires_grad) for name, value in tensors.items()}
    try:
        return functional_call(model, empty, (torch.empty(count, *shape, device="meta"),))
    except SHAPE_ERRORS:
        with torch.random.fork_rng(devices=[]):
            return copy.deepcopy(model).cpu()(torch.zeros(count, *shape))


def _forward_costs(model: nn.Module, shape: tuple[int, int, int]) -> tuple[list[Layer], int]:
    counter = FlopCounterMode(display=False)
    math_only = sdpa_kernel(SDPBackend.MATH)  # the fused attention kernels of the CPU are not counted
    with mode(model, training=False), torch.no_grad(), _watched(model) as layers, math_only, counter:
        _run(model, shape, 1)
    return layers, counter.get_total_flops()


@contextmanager
def _watched(model: nn.Module) -> Iterator[list[Layer]]:
    layers: list[Layer] = []

    def note(name: str) -> Any:
        def hook(module: nn.Module, _inputs: Any, output: Any) -> None:
            first = output if isinstance(output, Tensor) else next(iter(output), None)
            own = sum(parameter.numel() for parameter in module.parameters())
            found = tuple(first.shape[1:]) if isinstance(first, Tensor) else ()
            layers.append(Layer(name, type(module).__name__, found, own))

        return hook

    leaves = [(name, module) for name, module in model.named_modules() if not any(module.children())]
    handles = [
        module.register_forward_hook(note(name)) for name, module in leaves if not isinstance(module, nn.Identity)
    ]
    try:
        yield layers
    finally:
        for handle in handles:
            handle.remove()


def _activation_bytes(model: nn.Module, shape: tuple[int, int, int]) -> int:
    kept: dict[int, Tensor] = {}  # storages by identity; holding the tensors keeps identities unique

    def save(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter) and not (tensor.is_leaf and tensor.requires_grad):
            kept.setdefault(tensor.untyped_storage()._cdata, tensor)  # all but parameters
        return tensor

    with mode(model, training=True), saved_tensors_hooks(save, lambda tensor: tensor):
        main_and_auxiliary(_run(model, shape, 2))
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) // 2
