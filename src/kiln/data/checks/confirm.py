"""The last word on a pair: both images decoded again, larger and in colour, aligned and compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kiln.data.checks import aligned
from kiln.data.checks.aligned import Floats
from kiln.data.checks.looks import small_image
from kiln.data.prefetch import prefetched

if TYPE_CHECKING:
    from kiln.data.source import Source

SIDE_PX = 128
LEAST_CORRELATION, LEAST_DETAIL, LEAST_AGREEMENT = 0.88, 0.6, 0.75
"""Of 2,500 altered copies of 250 photographs none has less; of 21,000 pairs of alike photographs none has as much."""
_HOPELESS = 0.25
_BATCH = 32
_MOST_KEPT = 2048
_GRID = 8
_RING = np.ones((_GRID, _GRID), bool)
_RING[1:-1, 1:-1] = False
_BORDER = np.kron(_RING, np.ones((SIDE_PX // _GRID, SIDE_PX // _GRID))).astype(bool)
_MOST_SHADE = 0.04
"""Difference of the share of a colour in the border, up to which it counts as the same."""
_CENTRE = np.zeros((_GRID, _GRID), bool)
_CENTRE[2:-2, 2:-2] = True


@dataclass(frozen=True, eq=False)
class Verdicts:
    """What became of pairs, one entry each.

    Attributes:
        similarity: correlation of the aligned pixels, grey and colour, the lower of both.
        detail: correlation of what a blur takes away.
        agreement: share of the parts that hold something and correlate.
        parts: how many parts (of 16) hold something.
    """

    similarity: Floats
    detail: Floats
    agreement: Floats
    parts: NDArray[np.int64]

    @property
    def same(self) -> NDArray[np.bool_]:
        """Which pairs are copies of one picture."""
        return (
            (self.similarity >= LEAST_CORRELATION)
            & (self.detail >= LEAST_DETAIL)
            & (self.agreement >= LEAST_AGREEMENT)
            & (self.parts >= 1)
        )


class Pictures:
    """Decodes samples to squares of 128 px in colour, keeping the latest."""

    def __init__(self, source: Source, *, max_pixels: int) -> None:
        @lru_cache(maxsize=_MOST_KEPT)  # 48 KiB each
        def read(index: int) -> NDArray[np.uint8]:
            image = small_image(source.read(index), at_least_px=SIDE_PX, max_pixels=max_pixels)
            return np.asarray(image.resize((SIDE_PX, SIDE_PX), Image.Resampling.BILINEAR))

        self.read: Callable[[int], NDArray[np.uint8]] = read

    def pairs(self, i: NDArray[np.int64], j: NDArray[np.int64]) -> tuple[Floats, Floats]:
        """(M, 3, 128, 128) twice."""
        return self._stack(i), self._stack(j)

    def _stack(self, indices: NDArray[np.int64]) -> Floats:
        return np.stack([self.read(index) for index in indices.tolist()]).transpose(0, 3, 1, 2).astype(np.float32)


def confirm_copies(
    pictures: Pictures, i: NDArray[np.int64], j: NDArray[np.int64], boxes: Floats, *, workers: int
) -> Verdicts:
    """Compare pairs.

    Args:
        pictures: of the source.
        i: (M,) indices.
        j: (M,) indices.
        boxes: (M, 4) the part of image i that looks like image j, roughly.
        workers: threads that decode.
    """

    def compare(start: int) -> Floats:
        some = slice(start, start + _BATCH)
        return _compared(*pictures.pairs(i[some], j[some]), boxes[some])

    parts = prefetched(compare, range(0, len(i), _BATCH), workers=workers, ahead=2 * workers)
    similarity, detail, agreement, held = np.concatenate([np.zeros((4, 0)), *parts], axis=1)
    return Verdicts(similarity, detail, agreement, held.astype(np.int64))


def _compared(a: Floats, b: Floats, boxes: Floats) -> Floats:
    """(4, M): the columns of `Verdicts`."""
    grey_a, grey_b = a.mean(axis=1), b.mean(axis=1)
    best = _columns(a, b, grey_b, boxes)
    near = aligned.align(aligned.pooled(grey_a), aligned.pooled(grey_b), boxes, num_steps=4)
    for align_more in (0, 4):
        going = np.flatnonzero(best[1] > _HOPELESS)
        if len(going) == 0:
            break
        if align_more:
            near[going] = aligned.align(grey_a[going], grey_b[going], near[going], num_steps=align_more)
        now = _columns(a[going], b[going], grey_b[going], near[going])
        better = now[1] > best[1, going]  # an alignment may also run away: the one with the best detail counts
        best[:, going[better]] = now[:, better]
    return best


def _columns(a: Floats, b: Floats, grey_b: Floats, boxes: Floats) -> Floats:
    channels, known = zip(*(aligned.warp(a[:, channel], boxes) for channel in range(3)), strict=True)
    colour, known = np.stack(channels, axis=1), known[0]
    grey = colour.mean(axis=1)
    enough = known.mean(axis=(1, 2)) >= aligned.LEAST_OVERLAP
    in_grey = aligned.correlation(grey, grey_b, known)
    in_colour = aligned.correlation(colour, b, np.repeat(known[:, None], 3, axis=1))
    in_detail = aligned.correlation(aligned.detail(grey), aligned.detail(grey_b), known)
    agreement = aligned.agreement(grey, grey_b, known)
    return np.stack([np.minimum(in_grey, in_colour), in_detail, agreement.shares, agreement.parts]) * enough


def confirm_backdrops(
    pictures: Pictures, i: NDArray[np.int64], j: NDArray[np.int64], *, workers: int
) -> NDArray[np.bool_]:
    """Which pairs show another thing before the same backdrop: borders correlate part by part, the centre does not.

    The pictures are compared as they are, because a backdrop stays where it is only if the camera does.
    """

    def compare(start: int) -> NDArray[np.bool_]:
        both = pictures.pairs(i[start : start + _BATCH], j[start : start + _BATCH])
        tones = [images[:, :, _BORDER].mean(axis=2) for images in both]  # (M, 3)
        shades = [tone / np.maximum(tone.sum(axis=1, keepdims=True), 1) for tone in tones]
        one_colour = np.abs(shades[0] - shades[1]).max(axis=1) <= _MOST_SHADE
        # without what is smooth: the shadows of a lens or a lamp are no backdrop
        a, b = (aligned.detail(images.mean(axis=1), radius=16) for images in both)
        known = np.ones(a.shape, bool)
        ring = aligned.agreement(a, b, known, num_parts=_GRID, where=_RING)
        centre = aligned.agreement(a, b, known, num_parts=_GRID, where=_CENTRE)
        return one_colour & (ring.parts >= 7) & (ring.shares >= 0.7) & (centre.parts >= 3) & (centre.shares <= 0.5)

    return np.concatenate([np.zeros(0, bool), *prefetched(compare, range(0, len(i), _BATCH), workers=workers, ahead=4)])
