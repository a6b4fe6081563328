"""Which family a name belongs to, and the builders of the two small ones: our own network, and the user's code."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import nn

from kiln.errors import ArtifactError, UsageError
from kiln.models.catalogue import unknown_model
from kiln.models.family import HUB, Built, Wanted
from kiln.models.small_cnn import MIN_SIZE, SmallCNN
from kiln.names import load_object, load_trusted


def builder_for(wanted: Wanted) -> tuple[Callable[[Wanted], Built], Wanted]:
    """Which family a name belongs to, and the request with the family's prefix removed.

    A family is imported only when it is asked for: timm and torchvision take seconds.

    Raises: UsageError (E108): nobody knows the name; the closest are listed.
    """
    name = wanted.name.removeprefix("timm/")
    family, _, rest = name.partition("/")
    if ":" in name and not name.startswith(HUB):
        return build_users, wanted
    if name == "kiln/small_cnn":
        return build_small_cnn, wanted
    if family == "torchvision" and rest:
        from kiln.models.torchvision_family import build_torchvision

        return build_torchvision, replace(wanted, name=rest)
    from timm.models import is_model

    if name.startswith(HUB) or is_model(name.partition(".")[0]):
        from kiln.models.timm_family import build_timm

        return build_timm, replace(wanted, name=name)
    raise unknown_model(wanted.name)


def build_small_cnn(wanted: Wanted) -> Built:
    """The network of `kiln.models.small_cnn`."""
    if wanted.pretrained:
        raise ArtifactError("E301", "nobody published weights for kiln/small_cnn", hint="--weights none")
    if wanted.drop_path:
        raise UsageError("E103", "drop_path has no effect: kiln/small_cnn has no residual paths", hint="drop_path=0")
    unknown = sorted(set(wanted.kwargs) - {"widths"})
    if unknown:
        raise UsageError("E101", f"kiln/small_cnn does not take {unknown[0]!r}", got=unknown[0], choices=("widths",))
    kwargs = {key: tuple(value) for key, value in wanted.kwargs.items()}
    model = SmallCNN(wanted.num_classes, wanted.channels, drop=wanted.drop, **kwargs)
    return Built(model, wanted.name, dict(wanted.kwargs), img_size=wanted.img_size or 32, min_size=MIN_SIZE)


_SPELLINGS: dict[str, tuple[str, ...]] = {
    "num_classes": ("num_classes",),
    "channels": ("in_chans", "in_channels", "channels"),
    "img_size": ("img_size", "image_size"),
    "drop": ("drop", "drop_rate", "dropout"),
    "drop_path": ("drop_path", "drop_path_rate"),
}


def build_users(wanted: Wanted) -> Built:
    """What the user's function returns, called with those of our values that it has parameters for; or the user's network.

    A network given as an object is copied as it is, weights and all, and its ends fitted to channels and classes.
    """
    if wanted.pretrained:
        hint = "--weights FILE, or load them in the function and say --weights none"
        raise ArtifactError("E301", f"Kiln knows of no published weights for {wanted.name}", hint=hint)
    if wanted.trusted is None:
        make = load_object(wanted.name)
    else:
        make = load_trusted(wanted.name, wanted.trusted, named_by="the model's description")
    if not callable(make):
        raise UsageError(
            "E108", f"{wanted.name} is a {type(make).__name__}", expected="a function or class that makes a model"
        )
    if isinstance(make, nn.Module):
        return _copied(make, wanted)
    model = make(**_arguments_for(make, wanted))
    if not isinstance(model, nn.Module):
        raise UsageError("E107", f"{wanted.name} returned {type(model).__name__}", expected="a torch.nn.Module")
    return Built(model, wanted.name, dict(wanted.kwargs), img_size=wanted.img_size or 224)


def _copied(model: nn.Module, wanted: Wanted) -> Built:
    unused = [name for name in ("drop", "drop_path", "kwargs") if getattr(wanted, name)]
    if unused:
        raise UsageError("E103", f"model.{unused[0]} has no effect: the network was given ready made")
    note = "the network was given as an object: in another process its model file cannot be opened; module:function can"
    return Built(copy.deepcopy(model), wanted.name, {}, img_size=wanted.img_size or 224, notes=(note,))


def _arguments_for(make: Callable[..., Any], wanted: Wanted) -> dict[str, Any]:
    parameters = inspect.signature(make).parameters
    arguments = dict(wanted.kwargs)
    for name, spellings in _SPELLINGS.items():
        spelling = next((entry for entry in spellings if entry in parameters), None)
        value = getattr(wanted, name)
        if spelling and spelling not in arguments and value is not None:
            arguments[spelling] = value
        elif spelling is None and name.startswith("drop") and value:
            raise UsageError("E103", f"{name} = {value} has no effect: {wanted.name} has no parameter for it")
    takes_any = any(entry.kind is inspect.Parameter.VAR_KEYWORD for entry in parameters.values())
    unknown = [name for name in arguments if name not in parameters]
    if unknown and not takes_any:
        raise UsageError(
            "E101", f"{wanted.name} has no parameter {unknown[0]!r}", got=unknown[0], choices=list(parameters)
        )
    return arguments
