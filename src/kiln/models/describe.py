"""What a network is made of and what it costs: layers, shapes, parameters, FLOPs, memory for activations."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
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
    network, run = _runnable(model, (channels, img_size, img_size))
    layers, flops = _forward_costs(network, run)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Costs(tuple(layers), parameters, flops, _activation_bytes(network, run))


@dataclass(frozen=True)
class _Run:
    """A forward pass of so many images, and the tensors that are the network's own."""

    forward: Callable[[int], Any]
    own: tuple[Tensor, ...]


def _runnable(model: nn.Module, shape: tuple[int, int, int]) -> tuple[nn.Module, _Run]:
    """The network on the meta device; a copy that runs for real where tensors outside its state make that impossible."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    empty = {name: value.detach().to("meta").requires_grad_(value.requires_grad) for name, value in tensors.items()}

    def on_meta(count: int) -> Any:
        return functional_call(model, empty, (torch.empty(count, *shape, device="meta"),))

    try:
        with mode(model, training=False), torch.no_grad():
            on_meta(1)
    except SHAPE_ERRORS:
        twin = copy.deepcopy(model).cpu()

        def for_real(count: int) -> Any:
            with torch.random.fork_rng(devices=[]):
                return twin(torch.zeros(count, *shape))

        return twin, _Run(for_real, (*twin.parameters(), *twin.buffers()))
    return model, _Run(on_meta, tuple(empty.values()))


def _forward_costs(network: nn.Module, run: _Run) -> tuple[list[Layer], int]:
    counter = FlopCounterMode(display=False)
    math_only = sdpa_kernel(SDPBackend.MATH)  # the fused attention kernels of the CPU are not counted
    with mode(network, training=False), torch.no_grad(), _watched(network) as layers, math_only, counter:
        run.forward(1)
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


def _activation_bytes(network: nn.Module, run: _Run) -> int:
    own = {tensor.untyped_storage()._cdata for tensor in run.own}
    kept: dict[int, Tensor] = {}  # by storage, so that views count once; holding the tensors keeps identities unique

    def save(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()._cdata
        if storage not in own:
            kept.setdefault(storage, tensor)
        return tensor

    with mode(network, training=True), saved_tensors_hooks(save, lambda tensor: tensor):
        main_and_auxiliary(run.forward(2))
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) // 2
