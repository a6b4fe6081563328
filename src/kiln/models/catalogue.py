"""The names of all architectures that Kiln can make. timm and torchvision are imported when they are asked."""

from __future__ import annotations

import difflib

from kiln.errors import UsageError


def model_names() -> list[str]:
    """Our own first, then timm's and torchvision's."""
    import timm.models

    return ["kiln/small_cnn", *timm.models.list_models(), *(f"torchvision/{name}" for name in torchvision_names())]


def torchvision_names() -> list[str]:
    """The classification models of torchvision, without `torchvision/`."""
    import torchvision

    return torchvision.models.list_models(module=torchvision.models)


def unknown_model(name: str) -> UsageError:
    """The error for a name that no family knows, with the closest names of all."""
    similar = difflib.get_close_matches(name.lower(), model_names(), n=6, cutoff=0.5)
    hint = f"torchvision/{name}" if name in torchvision_names() else "kiln models '*PATTERN*' lists what there is"
    return UsageError(
        "E108",
        f"unknown model {name!r}",
        expected="a timm name, torchvision/NAME, hf-hub:OWNER/NAME, kiln/small_cnn, or your own module:function",
        got=name,
        choices=similar,
        hint=hint,
    )
