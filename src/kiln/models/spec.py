"""What has to be known to build a model again, and to feed it: plain values that travel in the model file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from kiln.errors import ArtifactError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
LIMITS = {"num_classes": 1_000_000, "channels": 4_096, "img_size": 65_536, "min_size": 65_536}


@dataclass(frozen=True)
class ModelSpec:
    """An architecture and the images that it takes.

    The mean, deviation, filter and crop are the architecture's own (those of its published weights), with pretrained
    weights and without: a network trained from scratch does not mind, and one rule means that weights loaded later fit.

    Attributes:
        name: `timm/NAME`, `torchvision/NAME`, `kiln/small_cnn`, or the user's `module:function`.
        num_classes: width of the output.
        channels: of the input.
        img_size: height and width of the input, in pixels.
        kwargs: further arguments of the architecture, plain JSON values.
        mean: per channel, in units of [0, 1].
        std: per channel.
        per_image: each image is standardised by itself, whole, after `mean` and `std` (which are then 0 and 1).
        interpolation: filter of the resize.
        crop_fraction: share of the resized shorter side that the centre crop keeps.
        min_size: the smallest size the architecture states, 1 where it states none (see `sizes.smallest_size`).
    """

    name: str
    num_classes: int
    channels: int = 3
    img_size: int = 224
    kwargs: dict[str, Any] = field(default_factory=dict)
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    per_image: bool = False
    interpolation: str = "bicubic"
    crop_fraction: float = 1.0
    min_size: int = 1

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, from which `from_dict` makes an equal spec."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelSpec:
        """The spec that `to_dict` wrote.

        Raises: ArtifactError: a field is unknown, missing, or out of range (the file lies, or is not ours).
        """
        known = {entry.name for entry in fields(cls)}
        if not isinstance(values, Mapping) or set(values) != known:
            raise ArtifactError("E303", "the model description has other fields than expected", choices=sorted(known))
        for name, limit in LIMITS.items():
            if type(values[name]) is not int or not 1 <= values[name] <= limit:
                raise ArtifactError(
                    "E303", f"model.{name} = {values[name]!r}", expected=f"a whole number, 1 to {limit}"
                )
        mean, std = (_numbers(values[name], values["channels"], name) for name in ("mean", "std"))
        if not isinstance(values["per_image"], bool):
            raise ArtifactError("E303", f"model.per_image = {values['per_image']!r}", expected="true or false")
        if not isinstance(values["name"], str) or not isinstance(values["kwargs"], dict):
            raise ArtifactError("E303", "the model description names no architecture")
        return cls(**{**values, "mean": mean, "std": std})


def _numbers(values: Any, count: int, name: str) -> tuple[float, ...]:
    numeric = isinstance(values, (list, tuple)) and all(type(value) in (int, float) for value in values)
    if not numeric or len(values) != count or (name == "std" and min(values) <= 0):
        raise ArtifactError("E303", f"model.{name} = {values!r}", expected=f"{count} numbers, one per channel")
    return tuple(float(value) for value in values)


def for_channels(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Statistics given for RGB, for another number of channels: their mean, in each."""
    if len(values) == channels:
        return tuple(float(value) for value in values)
    return (round(sum(values) / len(values), 6),) * channels
