"""Whether two pictures are one: the first is shifted and scaled onto the second, then their pixels are correlated.

Source: the alignment is Lucas and Kanade's (1981, "An iterative image registration technique"), for shift and scale per
axis, with gain and offset of the brightness solved along; many pairs at once.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

_LEAST_SCALE, _MOST_SCALE = 0.7, 1.43
LEAST_OVERLAP = 0.75
_PART_CORRELATION = 0.8
_TEXTURE_LEVELS = 4.0
"""Standard deviation, of 255, below which a part holds nothing that could be compared."""
_HOPELESS = 0.2
"""Correlation of detail after the coarse alignment below which the fine one is not tried."""


def pooled(images: Floats) -> Floats:
    """(..., 2h, 2w) -> (..., h, w): the mean of four."""
    return 0.25 * (images[..., ::2, ::2] + images[..., 1::2, ::2] + images[..., ::2, 1::2] + images[..., 1::2, 1::2])


def _taps(start: Floats, scale: Floats, size: int) -> tuple[Floats, NDArray[np.bool_]]:
    """What samples a line of pixels at `start + scale * u`, linearly; and which of these places lie inside.

    Args:
        start: (M,) as share of the line.
        scale: (M,).
        size: pixels of the line.
    Returns: (M, size, size) weights, and (M, size).
    """
    u = (np.arange(size, dtype=np.float32) + 0.5) / size
    at = ((start[:, None] + scale[:, None] * u) * size - 0.5).astype(np.float32, copy=False)
    weights = np.maximum(1 - np.abs(at[..., None] - np.arange(size, dtype=np.float32)), np.float32(0))
    return weights.astype(np.float32, copy=False), (at >= 0) & (at <= size - 1)


def warp(images: Floats, boxes: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    """A part of each image, brought to the size of the whole.

    Args:
        images: (M, S, S).
        boxes: (M, 4): left, top, width, height, as shares.
    Returns: (M, S, S), and where they are known.
    """
    size = images.shape[-1]
    across, inside_x = _taps(boxes[:, 0], boxes[:, 2], size)
    down, inside_y = _taps(boxes[:, 1], boxes[:, 3], size)
    warped = (down @ images @ across.swapaxes(1, 2)).astype(np.float32, copy=False)
    return warped, inside_y[:, :, None] & inside_x[:, None, :]


def align(images: Floats, others: Floats, boxes: Floats, *, num_steps: int = 8) -> Floats:
    """The part of each image that looks most like the other one.

    Args:
        images: (M, S, S), grey.
        others: (M, S, S).
        boxes: (M, 4), where to begin; see `warp`.
        num_steps: of Gauss and Newton.
    Returns: (M, 4). Where it does not converge it may lie anywhere; the correlation tells.
    """
    size = images.shape[-1]
    slopes_y, slopes_x = (np.gradient(images, axis=axis).astype(np.float32) for axis in (1, 2))
    u = (np.arange(size, dtype=np.float32) + 0.5) / size
    ones = np.ones((len(images), size, size), np.float32)
    for _ in range(num_steps):
        now, inside = warp(images, boxes)
        right, below = (warp(slopes, boxes)[0] * size for slopes in (slopes_x, slopes_y))  # per unit of the whole
        columns = np.stack([right, below, right * u, below * u[:, None], now, ones], axis=1)
        columns = (columns * inside[:, None]).reshape(len(images), 6, -1)
        target = (others * inside).reshape(len(images), -1, 1)
        normal = columns @ columns.swapaxes(1, 2)
        damping = 1e-4 * np.einsum("mii->mi", normal)[..., None] * np.eye(6, dtype=np.float32)
        # `others` is about gain * (now + slopes . change) + offset: the change comes out times the gain
        solved = np.linalg.solve((normal + damping + 1e-3 * np.eye(6)).astype(np.float64), columns @ target)[..., 0]
        gain = np.where(np.abs(solved[:, 4]) < 0.2, 0.2, solved[:, 4])
        change = np.clip(solved[:, :4] / gain[:, None], -0.05, 0.05)
        boxes = (boxes + change).astype(np.float32)
        boxes[:, 2:] = boxes[:, 2:].clip(_LEAST_SCALE, _MOST_SCALE)
        boxes[:, :2] = boxes[:, :2].clip(-0.3, 0.3)
    return boxes


def correlation(a: Floats, b: Floats, known: NDArray[np.bool_]) -> Floats:
    """Pearson's, over the last axes of `a` and `b` (M, ...) where `known`; 0 where one of them is constant.

    Returns: (M,).
    """
    a, b, known = a.reshape(len(a), -1), b.reshape(len(b), -1), known.reshape(len(known), -1)
    count = np.maximum(known.sum(axis=1, keepdims=True), 1)
    a = (a - (a * known).sum(axis=1, keepdims=True) / count) * known
    b = (b - (b * known).sum(axis=1, keepdims=True) / count) * known
    size = np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
    return np.where(size > 1e-3, (a * b).sum(axis=1) / np.maximum(size, 1e-3), 0).astype(np.float32)


def detail(images: Floats, radius: int = 2) -> Floats:
    """What is left of (M, S, S) without its blurred self: edges and texture, which two pictures of one kind do not share."""
    return images - _box_blurred(_box_blurred(images, radius).swapaxes(1, 2), radius).swapaxes(1, 2)


def _box_blurred(images: Floats, radius: int) -> Floats:
    """The mean over neighbours along the last axis."""
    width = 2 * radius + 1
    padded = np.pad(images, ((0, 0), (0, 0), (radius + 1, radius)), mode="edge")
    sums = padded.cumsum(axis=2, dtype=np.float64)
    return ((sums[..., width:] - sums[..., :-width]) / width).astype(np.float32)


class Agreement(NamedTuple):
    """How two aligned pictures agree, part by part.

    Attributes:
        shares: (M,) of the parts that hold anything, those that correlate.
        parts: (M,) how many hold anything.
    """

    shares: Floats
    parts: NDArray[np.int64]


def agreement(
    a: Floats, b: Floats, known: NDArray[np.bool_], *, num_parts: int = 4, where: NDArray[np.bool_] | None = None
) -> Agreement:
    """Correlate pictures in a grid of parts, so that one strong outline does not speak for all.

    Args:
        a: (M, S, S).
        b: (M, S, S).
        known: (M, S, S).
        num_parts: per axis.
        where: (num_parts, num_parts) the parts that count.
    """

    def cut(images: NDArray) -> NDArray:
        side = images.shape[1] // num_parts
        tiles = images.reshape(len(images), num_parts, side, num_parts, side).swapaxes(2, 3)
        return tiles.reshape(-1, side * side)

    tiles_a, tiles_b = cut(a), cut(b)
    shape = (len(a), num_parts * num_parts)
    agrees = correlation(tiles_a, tiles_b, cut(known)).reshape(shape) >= _PART_CORRELATION
    holds = np.maximum(tiles_a.std(axis=1), tiles_b.std(axis=1)).reshape(shape) >= _TEXTURE_LEVELS
    if where is not None:
        holds &= where.reshape(-1)
    parts = holds.sum(axis=1)
    return Agreement(((agrees & holds).sum(axis=1) / np.maximum(parts, 1)).astype(np.float32), parts)


def aligned_thumbs(thumbs: Floats, others: Floats, boxes: Floats) -> tuple[Floats, Floats]:
    """Align pairs of thumbs, coarse then fine.

    Args:
        thumbs: (M, 64, 64).
        others: (M, 64, 64).
        boxes: (M, 4), where to begin.
    Returns: (M,) the correlation of their detail, 0 where too little overlaps; and (M, 4) the part of `thumbs`.
    """
    coarse = align(pooled(thumbs), pooled(others), boxes, num_steps=6)
    best, score = boxes, _score(thumbs, others, boxes)
    going = np.maximum(score, _score(thumbs, others, coarse)) > _HOPELESS
    tried = coarse.copy()
    if going.any():
        tried[going] = align(thumbs[going], others[going], coarse[going], num_steps=4)
    for found in (coarse, tried):
        now = _score(thumbs, others, found)
        better = now > score
        best, score = np.where(better[:, None], found, best), np.maximum(score, now)
    return score, best


def _score(thumbs: Floats, others: Floats, boxes: Floats) -> Floats:
    now, known = warp(thumbs, boxes)
    enough = known.mean(axis=(1, 2)) >= LEAST_OVERLAP
    return np.where(enough, correlation(detail(now), detail(others), known), 0).astype(np.float32)
