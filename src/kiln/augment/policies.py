"""Policies by name: what the word in a recipe means."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kiln.augment.normalized import Output, normalized
from kiln.augment.operations import AutoAugment, Rand, Trivial
from kiln.augment.photographic import Light, Params, WarpColorErase
from kiln.augment.published import PUBLISHED
from kiln.errors import UsageError


class Policy(Protocol):
    """What is drawn for a batch on the host, and what is done with it on the device."""

    def draw(self, seed: int, epoch: int, keys: NDArray[np.uint64]) -> Params:
        """(B, P) float64: a pure function of (seed, epoch, key of the sample)."""
        ...

    def __call__(
        self,
        images: Tensor,
        params: Params,
        *,
        mean: Tensor | None = None,
        std: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """(B, C, H, W) uint8 -> the same, or normalised images in `dtype` when `mean` and `std` (C,) are given."""
        ...


@dataclass(frozen=True)
class Nothing:
    """The policy `none`: images as they come."""

    def draw(self, seed: int, epoch: int, keys: NDArray[np.uint64]) -> Params:  # noqa: ARG002 -- nothing depends on them
        """(B, 0)."""
        return np.zeros((len(keys), 0))

    def __call__(
        self,
        images: Tensor,
        params: Params,  # noqa: ARG002 -- empty
        *,
        mean: Tensor | None = None,
        std: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """A copy, or normalised images."""
        return normalized(images, Output(mean, std, dtype))


def standard(*, hflip: float = 0.5, vflip: float = 0.0) -> WarpColorErase:
    """Mild: half the images warped a little, all of them in other light, a quarter with a rectangle erased."""
    return WarpColorErase(hflip=hflip, vflip=vflip)


def strong(*, hflip: float = 0.5, vflip: float = 0.0) -> WarpColorErase:
    """For few images or long training: larger ranges, and now and then perspective, blur, noise or no colour."""
    return WarpColorErase(
        hflip=hflip,
        vflip=vflip,
        p_warp=0.8,
        degrees=20.0,
        translate=0.15,
        scale=(0.8, 1.2),
        shear_degrees=8.0,
        p_perspective=0.2,
        perspective=0.3,
        jitter=0.4,
        hue=0.05,
        gamma=1.25,
        p_grey=0.1,
        p_blur=0.15,
        p_noise=0.15,
        noise=0.08,
        p_erase=0.35,
    )


WITHOUT_ARGUMENTS: dict[str, Callable[..., Policy]] = {
    "light": Light,
    "standard": standard,
    "strong": strong,
    "trivial": Trivial,
}
CHOICES = ("none", *WITHOUT_ARGUMENTS, "rand(2,9)", *(f"autoaugment({data})" for data in PUBLISHED))
MAX_OPS, NUM_MAGNITUDES = 10, 31


def policy(text: str, *, hflip: float = 0.5, vflip: float = 0.0) -> Policy:
    """The policy that a word names.

    Args:
        text: `none`, `light`, `standard`, `strong`, `trivial`, `rand`, `rand(n,m)`, `autoaugment`, or
            `autoaugment(imagenet)`, `(cifar10)`, `(svhn)`.
        hflip: probability of mirroring left to right, before everything else; without effect on `none`.
        vflip: probability of mirroring top to bottom.
    Raises: UsageError: no such policy, or arguments that it cannot take.
    """
    written = re.fullmatch(r"\s*(\w+)\s*(?:\(([^()]*)\))?\s*", text.lower())
    name, inside = (written[1], written[2]) if written else (text, None)
    arguments = [part.strip() for part in inside.split(",")] if inside and inside.strip() else []
    both: dict[str, Any] = {"hflip": hflip, "vflip": vflip}
    if name == "rand":
        return Rand(*_rand_numbers(text, arguments), **both)
    if name == "autoaugment":
        data = arguments[0] if arguments else "imagenet"
        if data not in PUBLISHED or len(arguments) > 1:
            raise UsageError("E101", f"augment.policy = {text!r}", got=data, choices=tuple(PUBLISHED))
        return AutoAugment(data, **both)
    if arguments and (name == "none" or name in WITHOUT_ARGUMENTS):
        raise UsageError("E102", f"augment.policy = {text!r}", expected=f"{name}, which takes no arguments")
    if name == "none":
        return Nothing()
    if name not in WITHOUT_ARGUMENTS:
        raise UsageError("E101", f"augment.policy = {text!r}", got=text, choices=CHOICES)
    return WITHOUT_ARGUMENTS[name](**both)


def _rand_numbers(text: str, arguments: list[str]) -> tuple[int, int]:
    """How many operations and at which magnitude."""
    try:
        numbers = [int(argument) for argument in arguments]
    except ValueError:
        numbers = [-1]
    num_ops, magnitude, *more = [*numbers, *(2, 9)[len(numbers) :]]
    if more or not 0 < num_ops <= MAX_OPS or not 0 <= magnitude < NUM_MAGNITUDES:
        expected = f"rand(n,m): 1 to {MAX_OPS} operations at a magnitude from 0 to {NUM_MAGNITUDES - 1}, as rand(2,9)"
        raise UsageError("E102", f"augment.policy = {text!r}", expected=expected)
    return num_ops, magnitude
