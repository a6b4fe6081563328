"""Erasing: a rectangle of each image says nothing any more."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


def boxes(
    draws: NDArray[np.float64],
    *,
    area: tuple[float, float] = (0.02, 0.33),
    ratio: tuple[float, float] = (0.3, 3.3),
) -> NDArray[np.float64]:
    """Rectangles from uniform numbers: area uniform, the logarithm of the ratio uniform, place uniform.

    A side that would be longer than the image is cut to it, so every draw gives a rectangle.

    Args:
        draws: (B, 4) in [0, 1).
        area: smallest and largest share of the image.
        ratio: smallest and largest height / width, for square images.
    Returns: (B, 4) top, left, height, width as shares of the image.
    """
    share = area[0] + (area[1] - area[0]) * draws[:, 0]
    low, high = math.log(ratio[0]), math.log(ratio[1])
    slope = np.exp(low + (high - low) * draws[:, 1])
    height, width = np.minimum(np.sqrt(share * slope), 1.0), np.minimum(np.sqrt(share / slope), 1.0)
    return np.stack([draws[:, 2] * (1.0 - height), draws[:, 3] * (1.0 - width), height, width], axis=1)


def windows(shares: NDArray[np.float64] | Tensor, *, size: tuple[int, int]) -> NDArray[np.int64]:
    """Rectangles in whole pixels.

    Args:
        shares: (B, 4) on the host: top, left, height, width as shares of the image; no height or width: no rectangle.
        size: height and width of the images.
    Returns: (B, 4) top, left, bottom, right, all 0 for no rectangle; else at least one pixel.
    """
    sides = np.array([*size, *size])
    start, extent = np.split(np.rint(np.asarray(shares) * sides).astype(np.int64), 2, axis=1)
    stop = np.minimum(start + np.maximum(extent, 1), sides[:2])
    there = (np.asarray(shares)[:, 2:] > 0).all(1, keepdims=True)
    return np.concatenate([start, stop], axis=1) * there


def erase_(images: Tensor, shares: NDArray[np.float64] | Tensor, *, fill: float = 0.0) -> Tensor:
    """Fill one rectangle in each image, in place.

    Args:
        images: (B, C, H, W), any dtype. In normalised images 0 is the mean colour.
        shares: (B, 4) on the host: top, left, height, width as shares of the image; no height or width: no rectangle.
        fill: the value.
    Returns: the same tensor.
    """
    return erase_windows_(images, windows(shares, size=(images.shape[-2], images.shape[-1])), fill=fill)


def erase_windows_(images: Tensor, boxes: NDArray[np.int64], *, fill: float) -> Tensor:
    """`erase_` with rectangles from `windows`."""
    for row, (top, left, bottom, right) in enumerate(boxes.tolist()):
        if bottom > top:
            images[row, :, top:bottom, left:right] = fill
    return images


def erase(images: Tensor, shares: NDArray[np.float64] | Tensor, *, fill: float = 0.0) -> Tensor:
    """`erase_` on a copy."""
    return erase_(images.clone(), shares, fill=fill)
