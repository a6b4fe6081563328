"""State as JSON plus flat tensors: no pickle, and a leaf that cannot be kept is refused by name.

Tensors stand in the JSON skeleton as {"$tensor": name}; the name is the path of keys, so that a file of tensors can be
read with nothing but safetensors.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kiln.errors import ArtifactError


def encode(tree: Any) -> tuple[Any, dict[str, Tensor]]:
    """Split a tree of dicts, lists, tuples, numbers, strings, None, arrays and tensors.

    Returns: the JSON skeleton, and contiguous copies of the tensors on the CPU, safe from later changes.
    Raises: ArtifactError: a leaf of another type, or two tensors of one name; the message names the place.
    """
    found: dict[str, Tensor] = {}
    skeleton = _encode(tree, "", found)
    return skeleton, {name: tensor.to("cpu", copy=True).contiguous() for name, tensor in found.items()}


def require_encodable(tree: Any) -> None:
    """Hold, without copying a tensor, that `encode` would take a tree.

    Raises: ArtifactError: as `encode`.
    """
    _encode(tree, "", {})


def _encode(value: Any, place: str, found: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor | np.ndarray):
        name = place or "value"
        if name in found:
            raise ArtifactError("E306", f"two tensors of the state are both called {name}", expected="keys without /")
        found[name] = _kept(value, name)
        return {"$array" if isinstance(value, np.ndarray) else "$tensor": name}
    if isinstance(value, dict):
        _check_keys(value, place)
        return {key: _encode(item, f"{place}/{key}" if place else key, found) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [_encode(item, f"{place}/{index}", found) for index, item in enumerate(value)]
        return {"$tuple": items} if isinstance(value, tuple) else items
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": repr(value)}
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, np.generic) and not isinstance(value.item(), np.generic):
        return _encode(value.item(), place, found)
    raise _unfit(place, f"a {type(value).__module__}.{type(value).__qualname__}")


def _kept(value: Tensor | np.ndarray, place: str) -> Tensor:
    """What a file of tensors can hold of a leaf; shares its memory where it can."""
    if isinstance(value, np.ndarray):
        try:
            return torch.from_numpy(np.array(value, dtype=value.dtype.newbyteorder("="), order="C"))
        except TypeError as error:
            raise _unfit(place, f"an array of {value.dtype}") from error
    if value.layout != torch.strided or value.is_quantized or value.is_meta:
        raise _unfit(place, f"a {'meta' if value.is_meta else 'sparse or quantised'} tensor")
    if value.is_complex() and value.dtype != torch.complex64:
        raise _unfit(place, f"a tensor of {value.dtype}")
    return value.detach()


def _unfit(place: str, what: str) -> ArtifactError:
    return ArtifactError(
        "E306",
        f"{place or 'the state'} is {what}, which a checkpoint cannot hold",
        expected="dicts, lists, numbers, strings and tensors from state()",
    )


def _check_keys(value: dict[Any, Any], place: str) -> None:
    bad = [key for key in value if not isinstance(key, str) or not key or key.startswith("$")]
    if bad:
        raise ArtifactError(
            "E306",
            f"{place or 'the state'} has the key {bad[0]!r}",
            expected="text, not empty, that does not begin with $",
        )


def decode(skeleton: Any, tensors: dict[str, Tensor]) -> Any:
    """Join what `encode` split."""
    if isinstance(skeleton, list):
        return [decode(item, tensors) for item in skeleton]
    if not isinstance(skeleton, dict):
        return skeleton
    match list(skeleton.items()):
        case [("$tensor", name)]:
            return tensors[name]
        case [("$array", name)]:
            return tensors[name].numpy()
        case [("$tuple", items)]:
            return tuple(decode(item, tensors) for item in items)
        case [("$float", text)]:
            return float(text)
    return {key: decode(item, tensors) for key, item in skeleton.items()}
