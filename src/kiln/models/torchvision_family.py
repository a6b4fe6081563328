"""torchvision: any of its classification models; their builders take the number of classes themselves."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torchvision
from torch import nn

from kiln.errors import UsageError
from kiln.models.catalogue import torchvision_names, unknown_model
from kiln.models.family import Built, Wanted, refuse_reserved
from kiln.models.load import LoadReport, load_weights
from kiln.models.published import from_address, torchvision_entry
from kiln.models.surgery import head_names, replace_stem_, set_dropout_
from kiln.models.weights import published_state


def entry_of(name: str, weights: str) -> str:
    """The entry of a torchvision model's own list of weights that `--weights` names, or nothing.

    Args:
        name: of the model, without `torchvision/`.
        weights: `IMAGENET1K_V1`, or with its list, `ResNet50_Weights.IMAGENET1K_V1`; a file of that name comes first.
    """
    if name not in torchvision_names() or Path(weights).exists():
        return ""
    published = torchvision.models.get_model_weights(name)
    kind, _, member = weights.rpartition(".")
    return member if member in published.__members__ and kind in ("", published.__name__) else ""


def build_torchvision(wanted: Wanted) -> Built:
    """Any classification model of torchvision; its builders take the number of classes themselves."""
    refuse_reserved(wanted)
    if wanted.name not in torchvision_names():
        raise unknown_model(f"torchvision/{wanted.name}")
    published = torchvision_entry(wanted.name, wanted.entry or "DEFAULT")
    preset = published.transforms()
    img_size = wanted.img_size or preset.crop_size[0]
    arguments: dict[str, Any] = {**wanted.kwargs, "num_classes": wanted.num_classes}
    if wanted.name in ("googlenet", "inception_v3"):
        arguments.setdefault("init_weights", True)
        if wanted.pretrained:
            arguments.setdefault("aux_logits", True)
    if wanted.name.startswith("vit_"):
        arguments["image_size"] = img_size
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            model = torchvision.models.get_model(wanted.name, weights=None, **arguments)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        given = {key: value for key, value in arguments.items() if key != "init_weights"}
        raise UsageError("E102", f"torchvision/{wanted.name} cannot be made with {given}: {error}") from error
    notes = (replace_stem_(model, wanted.channels),)
    set_dropout_(model, wanted.drop, wanted.drop_path)
    report = _load_torchvision(model, published, wanted.num_classes) if wanted.pretrained else None
    trained_by_tensorflow = wanted.name in ("googlenet", "inception_v3")  # hence their transform_input; same arithmetic
    return Built(
        model,
        name=f"torchvision/{wanted.name}",
        kwargs=dict(wanted.kwargs),
        img_size=img_size,
        mean=(0.5, 0.5, 0.5) if trained_by_tensorflow else tuple(preset.mean),
        std=(0.5, 0.5, 0.5) if trained_by_tensorflow else tuple(preset.std),
        interpolation=preset.interpolation.value,
        crop_fraction=min(1.0, preset.crop_size[0] / preset.resize_size[0]),
        min_size=max(1, int(published.meta.get("min_size", (1,))[0])),
        fixed_size=wanted.name.startswith("vit_"),
        report=report,
        notes=tuple(note for note in notes if note),
    )


def _load_torchvision(model: nn.Module, published: Any, num_classes: int) -> LoadReport:
    drop = () if num_classes == len(published.meta["categories"]) else head_names(model)
    state, origin = published_state(from_address(published.url))
    return replace(load_weights(model, state, source=str(published), drop=drop), origin=origin)
