"""Views of one image for test time: the model sees several, and its answers are averaged."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from kiln.augment.values import as_levels, check_images
from kiln.errors import UsageError

CROP_SHARE = 0.875
"""Side of a cropped view as a share of the image's: 224 of 256, as in the usual five and ten crops."""


def _crop(images: Tensor, down: float, right: float) -> Tensor:
    """A square piece, resized to the size of the images; 0 is the upper or left end, 1 the other."""
    height, width = images.shape[-2:]
    tall, wide = max(round(CROP_SHARE * height), 1), max(round(CROP_SHARE * width), 1)
    top, left = round(down * (height - tall)), round(right * (width - wide))
    part = images[..., top : top + tall, left : left + wide].to(torch.float32)
    return as_levels(F.interpolate(part, size=(height, width), mode="bilinear", align_corners=False), images)


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda images: images.clone(),
    "hflip": lambda images: images.flip(-1),
    "vflip": lambda images: images.flip(-2),
    "rotate180": lambda images: images.flip(-2, -1),
    "center": lambda images: _crop(images, 0.5, 0.5),
    "top_left": lambda images: _crop(images, 0.0, 0.0),
    "top_right": lambda images: _crop(images, 0.0, 1.0),
    "bottom_left": lambda images: _crop(images, 1.0, 0.0),
    "bottom_right": lambda images: _crop(images, 1.0, 1.0),
}


def views(images: Tensor, names: Sequence[str]) -> Tensor:
    """The same images seen in several ways.

    Args:
        images: (B, C, H, W), uint8 or floating.
        names: of `VIEWS`; several steps are joined by `+`, as in `center+hflip`.
    Returns: (V, B, C, H, W), a new tensor of the same dtype.
    Raises: UsageError: no names, or an unknown one.
    """
    check_images(images)
    if not names:
        raise UsageError("E102", "names = []", expected="at least one view", choices=tuple(VIEWS))
    seen = []
    for name in names:
        view = images
        for step in name.split("+"):
            if step not in VIEWS:
                raise UsageError("E101", f"view {step!r}", got=step, choices=tuple(VIEWS))
            view = VIEWS[step](view)
        seen.append(view)
    return torch.stack(seen)
