"""What images hold: uint8 levels 0..255, or floats 0..1; arithmetic is float32, whatever comes and goes."""

from __future__ import annotations

import torch
from torch import Tensor

from kiln.errors import UsageError

PerSample = Tensor | float
"""One number for each image, (B,), or one for all."""

GREY = (0.2989, 0.587, 0.114)
"""How much of red, green and blue is in grey: torchvision's rounding of ITU-R 601-2."""


def check_images(images: Tensor, *, channels: tuple[int, ...] = ()) -> None:
    """Refuse what is not a batch of images.

    Raises: UsageError: not (B, C, H, W), neither uint8 nor floating, or a number of channels that is not in `channels`.
    """
    if images.ndim != 4 or not (images.dtype == torch.uint8 or images.is_floating_point()):
        what = f"images = {tuple(images.shape)} {images.dtype}"
        hint = "one image: images[None]; levels in another integer type: images.to(torch.uint8)"
        raise UsageError("E107", what, expected="(B, C, H, W), uint8 in 0..255 or floating in 0..1", hint=hint)
    if channels and images.shape[1] not in channels:
        what = f"images have {images.shape[1]} channels"
        expected = f"{' or '.join(map(str, channels))} channels for an operation on colour"
        raise UsageError("E107", what, expected=expected, hint="use geometry and erasing alone on such images")


def is_channels_last(images: Tensor) -> bool:
    """Whether the channels of a pixel lie together, (B, H, W, C) in memory, and not also as planes."""
    return images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()


def ceiling(images: Tensor) -> float:
    """The brightest value that these images can hold."""
    return 255.0 if images.dtype == torch.uint8 else 1.0


def as_levels(values: Tensor, images: Tensor) -> Tensor:
    """Float32 results in the dtype of `images`, uint8 rounded to the nearest; `values` may be overwritten."""
    if images.dtype != torch.uint8:
        return values.to(images.dtype)
    return values.round_().to(torch.int32).to(torch.uint8)  # by way of int32: half the time on a CPU


def per_sample(value: PerSample, images: Tensor, *, name: str = "value") -> Tensor:
    """(B,) float32 on the device of the images.

    Raises: UsageError: neither one number nor one for each image.
    """
    numbers = torch.as_tensor(value, dtype=torch.float32)
    if numbers.ndim > 1 or (numbers.ndim == 1 and len(numbers) != len(images)):
        what = f"{name} has shape {tuple(numbers.shape)}"
        raise UsageError("E107", what, expected=f"one number, or one for each of the {len(images)} images")
    return numbers.to(images.device, non_blocking=True).expand(len(images))


def per_pixel(value: PerSample, images: Tensor, *, name: str = "value") -> Tensor:
    """(B, 1, 1, 1) float32: `per_sample`, ready to meet pixels."""
    return per_sample(value, images, name=name).view(-1, 1, 1, 1)
