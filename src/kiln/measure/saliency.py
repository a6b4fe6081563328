"""Where a network looked: gradient times activation at its last map of features, through captum.

Source: Selvaraju et al. 2017, arXiv:1610.02391, the gradients there not averaged over the map, which also fits token
sequences; captum's LayerGradientXActivation, summed over channels, positive parts only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kiln.errors import UsageError

LEAST_SIDE = 4
"""A map with fewer cells on a side says too little; an earlier one is taken where there is one."""


def is_available() -> bool:
    """Whether captum is installed."""
    return find_spec("captum") is not None


def saliency(
    network: nn.Module, images: Tensor, outputs: Sequence[int], *, batch_size: int = 16
) -> NDArray[np.float32]:
    """Maps of what spoke for an output.

    Args:
        network: any whose features keep their place: maps (B, C, H, W), channels-last ones, or tokens (B, N, D). In
            evaluation mode; its weights are left alone.
        images: (N, C, H, W), as the network takes them.
        outputs: (N,) the output that each map is for.
        batch_size: images per pass.
    Returns: (N, h, w), each from 0 to 1, coarse as the features are; all zeros where nothing spoke for the output.
    Raises: UsageError (E107): captum is not installed, or the network has no such features.
    """
    if not is_available():
        raise UsageError("E107", "saliency needs captum", hint="pip install 'torchkiln[explain]'")
    from captum.attr import LayerGradientXActivation

    layer = feature_layer(network, images[:1])
    method = LayerGradientXActivation(network, network.get_submodule(layer.name))
    maps = []
    with torch.enable_grad():
        for start in range(0, len(images), batch_size):
            some = images[start : start + batch_size].detach().clone().requires_grad_()
            target = torch.as_tensor(list(outputs[start : start + batch_size]), device=some.device)
            made: Any = method.attribute(some, target=target)
            found: Tensor = made[0] if isinstance(made, tuple | list) else made
            maps.append(layer.picture(found.detach().float().cpu()))
    values = torch.cat(maps).clamp_min(0).numpy()
    highest = values.max(axis=(1, 2), keepdims=True)
    return np.divide(values, highest, out=np.zeros_like(values), where=highest > 0)


@dataclass(frozen=True)
class FeatureLayer:
    """Where features still have a place in the image.

    Attributes:
        name: of the module that makes them.
        channels: the dimension of the channels, 1 or -1.
        grid: rows and columns of tokens; tokens before those, such as a class token, are no part of the picture. None
            for a map.
        least_side: rows or columns, whichever are fewer.
    """

    name: str
    channels: int
    grid: tuple[int, int] | None
    least_side: int

    def picture(self, features: Tensor) -> Tensor:
        """(B, h, w): the sum over channels of what the module makes."""
        summed = features.sum(self.channels)
        if self.grid is None:
            return summed
        rows, columns = self.grid
        return summed[:, -rows * columns :].reshape(-1, rows, columns)


def feature_layer(network: nn.Module, image: Tensor) -> FeatureLayer:
    """The last module whose output has a place in the image, and feeds the answer from there.

    Args:
        network: in evaluation mode.
        image: (1, C, H, W).
    Raises: UsageError (E107): there is none.
    """
    with torch.enable_grad():
        calls, logits = _calls(network, image.detach().clone().requires_grad_())
        names = [name for name, _ in calls]
        modules = dict(network.named_modules())
        tokens: list[Any] = [getattr(module, "num_prefix_tokens", None) for module in modules.values()]
        prefixes = [int(number) for number in tokens if number is not None]
        fitting = [
            (layer, made)
            for name, made in calls
            if names.count(name) == 1
            and made.requires_grad
            and not isinstance(modules[name], nn.Linear)  # queries and keys are no features
            and (layer := _place(name, tuple(made.shape), (image.shape[-2], image.shape[-1]), max(prefixes, default=0)))
        ]
        if prefixes:  # tokens; what has four dimensions there are heads of attention
            fitting = [one for one in fitting if one[0].grid is not None] or fitting
        for layer, made in reversed([one for one in fitting if one[0].least_side >= LEAST_SIDE] or fitting):
            gradient = torch.autograd.grad(logits[0].max(), made, retain_graph=True, allow_unused=True)[0]
            if gradient is not None and bool((layer.picture(gradient.abs()) > 0).any()):
                return layer
    raise UsageError("E107", "the network has no features that keep their place in the image")


def _calls(network: nn.Module, image: Tensor) -> tuple[list[tuple[str, Tensor]], Tensor]:
    """What every module inside made, in the order in which they ended, and the logits."""
    calls: list[tuple[str, Tensor]] = []
    handles = []
    for name, module in network.named_modules():
        if name:

            def noted(_module: nn.Module, _given: object, made: object, *, name: str = name) -> None:
                if isinstance(made, Tensor):
                    calls.append((name, made))

            handles.append(module.register_forward_hook(noted))
    try:
        return calls, network(image)
    finally:
        for handle in handles:
            handle.remove()


def _place(name: str, shape: tuple[int, ...], image: tuple[int, int], prefix: int) -> FeatureLayer | None:
    """How an output of this shape (1, ...) lies over the image; None where it does not."""
    wide = image[0] / image[1]
    if len(shape) == 4:
        first, last = shape[2:], shape[1:3]
        fits = {dim: _is_like(side, wide) for dim, side in ((1, first), (-1, last))}
        if fits[1] and (not fits[-1] or shape[1] >= shape[3]):
            return FeatureLayer(name, 1, None, min(first))
        return FeatureLayer(name, -1, None, min(last)) if fits[-1] else None
    if len(shape) == 3 and (num := shape[1] - prefix) > 1:
        rows = round(math.sqrt(num * wide))
        grid = (rows, num // max(rows, 1))
        return FeatureLayer(name, -1, grid, min(grid)) if grid[0] * grid[1] == num and _is_like(grid, wide) else None
    return None


def _is_like(side: tuple[int, ...], wide: float) -> bool:
    return min(side) > 1 and abs(math.log(side[0] / side[1] / wide)) < 0.5
