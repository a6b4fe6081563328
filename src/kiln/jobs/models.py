"""The verb `models`: which architectures there are, and what one is made of."""

from __future__ import annotations

import fnmatch
from dataclasses import asdict
from typing import Any

import torchvision
from timm.models import get_arch_pretrained_cfgs

from kiln.models.catalogue import model_names
from kiln.models.create import create_model
from kiln.models.describe import costs_of
from kiln.models.sizes import smallest_size, takes


def list_models(pattern: str = "*", pretrained: bool = False) -> list[dict[str, Any]]:
    """The architectures whose name fits.

    Args:
        pattern: with `*`, `?` and `[..]`; a word without them is looked for anywhere in the name.
        pretrained: only those with published weights.

    Returns: a row per architecture, our own first, then timm's and torchvision's: `name`, `weights` (the tags that
        `--model NAME.TAG` takes, or for torchvision those of its own list; empty without published weights).
    """
    pattern = pattern if any(sign in pattern for sign in "*?[") else f"*{pattern}*"
    fitting = [name for name in model_names() if fnmatch.fnmatchcase(name.lower(), pattern.lower())]
    rows = [{"name": name, "weights": _published(name)} for name in fitting]
    return [row for row in rows if row["weights"] or not pretrained]


def _published(name: str) -> list[str]:
    family, _, rest = name.rpartition("/")
    if family == "kiln":
        return []
    if family == "torchvision":
        return [entry.name for entry in torchvision.models.get_model_weights(rest)]
    return [cfg.tag or "" for cfg in get_arch_pretrained_cfgs(name).values() if cfg.has_weights]


def describe_model(
    name: str, *, img_size: int | None = None, num_classes: int = 1000, channels: int = 3
) -> dict[str, Any]:
    """What a model is made of and what one image costs it.

    Args:
        name: as for `create_model`.
        img_size: height and width in pixels; None is the architecture's own.
        num_classes: width of the output.
        channels: of the images.

    Returns: `name`, `img_size`, `channels`, `num_classes`, `smallest_px` (that this very network trains on; `img_size`
        where it is built for one size), `parameters`, `flops` (forward; a multiply-add is two), `activation_bytes`
        (kept for the backward pass, float32), `layers` (name, kind, shape, parameters), `mean`, `std`,
        `interpolation`, `crop_fraction`.
    Raises: UsageError: as `create_model`.
    """
    made = create_model(name, num_classes=num_classes, channels=channels, img_size=img_size)
    spec = made.spec
    costs = costs_of(made.model, channels=channels, img_size=spec.img_size)
    return {
        "name": spec.name,
        "img_size": spec.img_size,
        "channels": channels,
        "num_classes": num_classes,
        "smallest_px": smallest_size(
            lambda size: takes(made.model, channels=channels, img_size=size), largest=spec.img_size
        ),
        "parameters": costs.parameters,
        "flops": costs.flops,
        "activation_bytes": costs.activation_bytes,
        "layers": [asdict(layer) for layer in costs.layers],
        "mean": spec.mean,
        "std": spec.std,
        "interpolation": spec.interpolation,
        "crop_fraction": spec.crop_fraction,
    }
