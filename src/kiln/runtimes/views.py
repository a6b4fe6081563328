"""Several views of each image at prediction time, their probabilities averaged; NumPy and Pillow, whatever computes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kiln import tasks
from kiln.errors import UsageError
from kiln.pixels import resize
from kiln.runtimes.predictor import Runtime
from kiln.tasks.decision import Decision

Image = NDArray[np.uint8]  # (H, W, C)

CROP_SHARE = 0.875
"""Side of a cropped view as a share of the image's: 224 of 256, as in the usual five and ten crops."""
SCALES = (0.25, 4.0)
"""The smallest and the largest of `scale(FACTOR)`."""

FIVE = ("center", "top_left", "top_right", "bottom_left", "bottom_right")
SETS: dict[str, tuple[str, ...]] = {
    "none": ("identity",),
    "hflip": ("identity", "hflip"),
    "flips": ("identity", "hflip", "vflip", "rotate180"),
    "five_crop": FIVE,
    "ten_crop": (*FIVE, *(f"{name}+hflip" for name in FIVE)),
    "scales": ("scale(0.875)", "identity", "scale(1.125)"),
}
"""What `--tta` takes by name; otherwise views of `VIEWS` and `scale(FACTOR)`, steps joined by `+`, views by commas."""


def _crop(image: Image, down: float, right: float) -> Image:
    """A piece, resized to the image's size; 0 is the upper or left end, 1 the other."""
    height, width = image.shape[:2]
    tall, wide = max(round(CROP_SHARE * height), 1), max(round(CROP_SHARE * width), 1)
    return _part(image, round(down * (height - tall)), round(right * (width - wide)), tall, wide)


def _part(image: Image, top: int, left: int, tall: int, wide: int) -> Image:
    part = np.ascontiguousarray(image[top : top + tall, left : left + wide])
    return resize(part, image.shape[:2], interpolation="bilinear")


def _scaled(image: Image, factor: float) -> Image:
    """Nearer or farther about the middle; what lies beyond the border continues it."""
    if not SCALES[0] <= factor <= SCALES[1]:
        raise UsageError("E102", f"scale({factor:g})", expected=f"a factor from {SCALES[0]:g} to {SCALES[1]:g}")
    height, width = image.shape[:2]
    if factor >= 1:
        tall, wide = max(round(height / factor), 1), max(round(width / factor), 1)
        return _part(image, (height - tall) // 2, (width - wide) // 2, tall, wide)
    tall, wide = max(round(height * factor), 1), max(round(width * factor), 1)
    small = resize(image, (tall, wide), interpolation="bilinear")
    down, right = (height - tall) // 2, (width - wide) // 2
    return np.pad(small, ((down, height - tall - down), (right, width - wide - right), (0, 0)), mode="edge")


VIEWS: dict[str, Callable[[Image], Image]] = {
    "identity": lambda image: image,
    "hflip": lambda image: image[:, ::-1],
    "vflip": lambda image: image[::-1],
    "rotate180": lambda image: image[::-1, ::-1],
    "center": lambda image: _crop(image, 0.5, 0.5),
    "top_left": lambda image: _crop(image, 0.0, 0.0),
    "top_right": lambda image: _crop(image, 0.0, 1.0),
    "bottom_left": lambda image: _crop(image, 1.0, 0.0),
    "bottom_right": lambda image: _crop(image, 1.0, 1.0),
}


def view_names(asked: str | Iterable[str]) -> tuple[str, ...]:
    """The views that a name of `SETS`, a text with commas, or a list asks for.

    Raises: UsageError: an unknown view (E101), or none (E102).
    """
    if isinstance(asked, str):
        asked = SETS.get(asked) or [name.strip() for name in asked.split(",") if name.strip()]
    names = tuple(asked)
    if not names:
        raise UsageError("E102", "no view", expected="at least one", choices=tuple(SETS))
    blank = np.zeros((4, 4, 3), np.uint8)
    for name in names:
        seen(blank, name)
    return names


def seen(image: Image, name: str) -> Image:
    """One view of an image (H, W, C) uint8, at the same size. Raises: UsageError: an unknown view."""
    for step in name.split("+"):
        if found := re.fullmatch(r"scale\((\d+(?:\.\d+)?)\)", step):
            image = _scaled(image, float(found[1]))
        elif step in VIEWS:
            image = VIEWS[step](image)
        elif step in SETS:
            what = f"{step} is a set of views, which stands alone: a list takes single ones"
            raise UsageError("E101", what, expected=f"--tta {step}, or a list of {', '.join(VIEWS)}, scale(1.25)")
        else:
            raise UsageError(
                "E101", f"unknown view {step!r}", got=step, choices=tuple(dict.fromkeys((*SETS, *VIEWS, "scale(1.25)")))
            )
    return image


class Viewed:
    """A runtime that shows its model several views of each image.

    Its logits are those of the mean probability over views, each calibrated as the model says; refusal goes by the bounds
    that were fitted without views.

    Args:
        runtime: what runs the network.
        views: names, as from `view_names`.
    """

    def __init__(self, runtime: Runtime, views: tuple[str, ...]) -> None:
        self.views = views
        self.name, self.device, self.digest = runtime.name, runtime.device, runtime.digest
        self.classes, self.contract, self.task = runtime.classes, runtime.contract, runtime.task
        self._runtime, self._calibration = runtime, Decision.from_dict(runtime.decision)
        self.decision: Mapping[str, Any] = replace(self._calibration, scale=(), bias=()).to_dict()

    def logits(self, images: NDArray[np.uint8], sizes: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        """Logits (B, K) for images (B, C, H, W), padded ones with their `sizes` (B, 2)."""
        said = [
            self._calibration.calibrated(self._runtime.logits(view_of(images, name, sizes), sizes))
            for name in self.views
        ]
        pooled = tasks.from_dict(self.task).pooled(np.stack(said), np.full(len(said), 1 / len(said)))
        return pooled.astype(np.float32)


def view_of(images: NDArray[np.uint8], name: str, sizes: NDArray[np.int64] | None = None) -> NDArray[np.uint8]:
    """One view of each image of a batch (B, C, H, W); of padded ones, the part within `sizes` (B, 2)."""
    if name == "identity":
        return images
    result = np.zeros_like(images)
    for row, image in enumerate(images):
        height, width = image.shape[1:] if sizes is None else sizes[row].tolist()
        whole = np.ascontiguousarray(image[:, :height, :width].transpose(1, 2, 0))
        result[row, :, :height, :width] = seen(whole, name).transpose(2, 0, 1)
    return result
