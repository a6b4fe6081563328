"""Where the frozen part of a network ends: its output, the features, is made once for an image, and the head trained on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.random import fork_rng

from kiln.errors import UsageError
from kiln.models.blocks import DROPOUTS
from kiln.models.freeze import frozen_atoms
from kiln.models.sizes import mode


@dataclass(frozen=True)
class FeatureCut:
    """The modules that make logits of features, one after the other; everything before them is frozen.

    Attributes:
        steps: their names; the first one's input is the features.
        flattened: numbers of those steps whose input is flattened to (B, F) first.
        drop: probability of a dropout that the network's code applies to the features itself, in training.
    """

    steps: tuple[str, ...]
    flattened: frozenset[int] = frozenset()
    drop: float = 0.0

    def features(self, model: nn.Module, images: Tensor, *, run: Callable[[Tensor], Any] | None = None) -> Tensor:
        """What the first step is given; nothing after that is computed.

        Args:
            model: that the cut was found in, or a copy; in evaluation mode.
            images: (B, C, H, W).
            run: calls the model, where it is wrapped in something.
        Returns: (B, ...) in the dtype of the forward pass.
        """
        handle = model.get_submodule(self.steps[0]).register_forward_pre_hook(_reached)
        try:
            (run or model)(images)
        except _ReachedError as reached:
            return reached.features
        finally:
            handle.remove()
        raise UsageError("E107", f"the model does not call its layer {self.steps[0]!r}")

    def head(self, model: nn.Module, features: Tensor) -> Tensor:
        """Logits (B, K) of features (B, ...), in the model's present mode."""
        if self.drop:
            features = F.dropout(features, self.drop, model.training)
        for number, name in enumerate(self.steps):
            if number in self.flattened:
                features = features.flatten(1)
            features = model.get_submodule(name)(features)
        return features


class _ReachedError(Exception):
    """Ends a forward pass at the head."""

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.features = features


def _reached(module: nn.Module, args: tuple[Any, ...]) -> None:  # noqa: ARG001 - torch's signature
    raise _ReachedError(args[0])


@dataclass(frozen=True)
class _Call:
    name: str
    is_leaf: bool
    given: Tensor | None
    made: Any


@torch.no_grad()
def find_cut(model: nn.Module, images: Tensor) -> FeatureCut:
    """Find where the frozen part of a model ends, by running it.

    What comes after must be modules alone, in a row up to the logits, or one module; dropout among them, and one that
    the code applies to the features (timm's `drop_rate`). It is tried: the head alone must give what the model gives,
    in training mode with the same random numbers too.

    Args:
        model: with its backbone frozen, see `kiln.models.freeze`.
        images: (B, C, H, W), a few of any content.
    Raises: UsageError (E107): the model cannot be cut, and why.
    """
    frozen = frozen_atoms(model)
    trained = [name for name, _ in (*model.named_parameters(), *model.named_buffers()) if name not in frozen]
    calls, output = _run(model, images)
    if not isinstance(output, Tensor):
        raise _cannot("the model returns more than logits")
    cut = _row(model, calls, output, trained, frozen) or _one(calls, output, trained)
    if cut is None:
        raise _cannot("what follows the frozen part is more than modules in a row that end in the logits")
    if not _agrees(cut, model, images, output):
        cut = replace(cut, drop=float(getattr(model, "drop_rate", 0.0) or 0.0))
        if not cut.drop or not _agrees(cut, model, images, output):
            raise _cannot("the head alone does not give what the model gives: something else is random or changes")
    return cut


def _cannot(why: str) -> UsageError:
    return UsageError("E107", f"features before the head cannot be kept: {why}")


def _run(model: nn.Module, images: Tensor) -> tuple[list[_Call], Any]:
    """Every call of a module, in the order in which they ended. Holds all tensors, so that no memory is used twice."""
    calls: list[_Call] = []
    handles = []
    for name, module in model.named_modules():
        leaf = not any(True for _ in module.children())

        def noted(_module: nn.Module, args: Any, made: Any, *, name: str = name, leaf: bool = leaf) -> None:
            given = args[0] if len(args) == 1 and isinstance(args[0], Tensor) else None
            calls.append(_Call(name, leaf, given, made))

        handles.append(module.register_forward_hook(noted))
    try:
        with mode(model, training=False):
            return calls, model(images)
    finally:
        for handle in handles:
            handle.remove()


def _row(
    model: nn.Module, calls: Sequence[_Call], output: Tensor, trained: Sequence[str], frozen: frozenset[str]
) -> FeatureCut | None:
    """The childless modules from the first one on that is trained, or drops in training, if each feeds the next."""

    def matters(name: str) -> bool:
        return _holds(name, trained) or (name not in frozen and isinstance(model.get_submodule(name), DROPOUTS))

    leaves = [call for call in calls if call.is_leaf]
    first = next((number for number, call in enumerate(leaves) if matters(call.name)), None)
    if first is None:
        return None
    row = leaves[first:]
    names = [call.name for call in row]
    if not all(any(_holds(name, [tensor]) for name in names) for tensor in trained) or not _is(row[-1].made, output):
        return None
    flattened = set()
    for number, (before, after) in enumerate(pairwise(row), start=1):
        if not _is(before.made, after.given):
            if not _is(before.made, after.given, flat=True):
                return None
            flattened.add(number)
    return None if row[0].given is None else FeatureCut(tuple(names), frozenset(flattened))


def _one(calls: Sequence[_Call], output: Tensor, trained: Sequence[str]) -> FeatureCut | None:
    """The smallest module that holds all that is trained, if it is called once and makes the logits."""
    fitting = [
        call
        for call in calls
        if call.name and call.given is not None and _is(call.made, output) and _holds_all(call.name, trained)
    ]
    if not fitting or sum(call.name == fitting[0].name for call in calls) > 1:
        return None
    return FeatureCut((fitting[0].name,))  # inner calls end first


def _holds(module: str, tensors: Sequence[str]) -> bool:
    return any(tensor.startswith(f"{module}.") for tensor in tensors)


def _holds_all(module: str, tensors: Sequence[str]) -> bool:
    return bool(tensors) and all(tensor.startswith(f"{module}.") for tensor in tensors)


def _is(made: Any, given: Tensor | None, *, flat: bool = False) -> bool:
    """Whether one tensor is the other, or the other flattened to (B, F)."""
    if not isinstance(made, Tensor) or given is None or made.data_ptr() != given.data_ptr():
        return False
    shape = made.flatten(1).shape if flat and made.dim() > 1 else made.shape
    return made.dtype == given.dtype and shape == given.shape


def _agrees(cut: FeatureCut, model: nn.Module, images: Tensor, output: Tensor) -> bool:
    """Whether features and head together are the model, in both modes. Running statistics are put back."""
    with mode(model, training=False):
        features = cut.features(model, images)
        evaluated = cut.head(model, features)
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    with fork_rng(devices=[images.device] if images.device.type == "cuda" else []), mode(model, training=True):
        torch.manual_seed(0)
        whole = model(images)
        torch.manual_seed(0)
        parts = cut.head(model, features)
    for buffer, before in buffers:
        buffer.copy_(before)
    return _close(output, evaluated) and _close(whole, parts)


def _close(one: Any, other: Tensor) -> bool:
    return isinstance(one, Tensor) and one.shape == other.shape and torch.allclose(one, other, 1e-4, 1e-6, True)
