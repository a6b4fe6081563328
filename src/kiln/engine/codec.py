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
    Raises: ArtifactError: a leaf of another type; the message names its place.
    """
    tensors: dict[str, Tensor] = {}
    return _encode(tree, "", tensors), tensors


def _encode(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor | np.ndarray):
        name = place or "value"
        is_array = isinstance(value, np.ndarray)
        tensor = torch.from_numpy(value) if is_array else value.detach()
        tensors[name] = tensor.to("cpu", copy=True).contiguous()
        return {"$array" if is_array else "$tensor": name}
    if isinstance(value, dict):
        _check_keys(value, place)
        return {key: _encode(item, f"{place}/{key}" if place else key, tensors) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [_encode(item, f"{place}/{index}", tensors) for index, item in enumerate(value)]
        return {"$tuple": items} if isinstance(value, tuple) else items
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": repr(value)}
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, np.generic):
        return _encode(value.item(), place, tensors)
    raise ArtifactError(
        "E306",
        f"{place or 'the state'} is a {type(value).__module__}.{type(value).__qualname__}, which a checkpoint cannot hold",
        expected="dicts, lists, numbers, strings and tensors from state()",
    )


def _check_keys(value: dict[Any, Any], place: str) -> None:
    bad = [key for key in value if not isinstance(key, str) or key.startswith("$")]
    if bad:
        raise ArtifactError(
            "E306", f"{place or 'the state'} has the key {bad[0]!r}", expected="text that does not begin with $"
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
