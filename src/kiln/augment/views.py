"""Views of one image for test time: the model sees several, and its answers are averaged."""

from __future__ import annotations

import re
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


SCALES = (0.25, 4.0)
"""The smallest and the largest of `scale(FACTOR)`."""


def scaled(images: Tensor, factor: float) -> Tensor:
    """The same images nearer or farther, about the middle, at the same size.

    Args:
        images: (B, C, H, W), uint8 or floating.
        factor: above 1 the middle, enlarged; below 1 the whole, reduced with antialiasing, its border continued outwards.
    Returns: a new tensor of the same shape and dtype.
    Raises: UsageError: outside `SCALES`.
    """
    check_images(images)
    if not SCALES[0] <= factor <= SCALES[1]:
        raise UsageError("E102", f"scale({factor:g})", expected=f"a factor from {SCALES[0]:g} to {SCALES[1]:g}")
    height, width = images.shape[-2:]
    values = images.to(torch.float32)
    if factor >= 1:
        tall, wide = max(round(height / factor), 1), max(round(width / factor), 1)
        top, left = (height - tall) // 2, (width - wide) // 2
        part = values[..., top : top + tall, left : left + wide]
        return as_levels(F.interpolate(part, size=(height, width), mode="bilinear", align_corners=False), images)
    tall, wide = max(round(height * factor), 1), max(round(width * factor), 1)
    small = F.interpolate(values, size=(tall, wide), mode="bilinear", align_corners=False, antialias=True)
    down, right = (height - tall) // 2, (width - wide) // 2
    border = (right, width - wide - right, down, height - tall - down)
    return as_levels(F.pad(small, border, mode="replicate"), images)


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
        names: of `VIEWS`, or `scale(FACTOR)`; several steps are joined by `+`, as in `scale(1.25)+hflip`.
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
            view = _seen(view, step)
        seen.append(view)
    return torch.stack(seen)


def _seen(images: Tensor, step: str) -> Tensor:
    if found := re.fullmatch(r"scale\((\d+(?:\.\d+)?)\)", step):
        return scaled(images, float(found[1]))
    if step not in VIEWS:
        raise UsageError("E101", f"view {step!r}", got=step, choices=(*VIEWS, "scale(1.25)"))
    return VIEWS[step](images)
