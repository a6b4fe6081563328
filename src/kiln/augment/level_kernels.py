"""Operations on uint8 levels, in place, one image after another, compiled by Numba: as `operations.py` needs them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import float32, int32, uint8, uint32, uint64

from kiln.augment.kernels import Array, Memory, added_to, kernel, pack, paint, take


class Mirrored(NamedTuple):
    """A batch that becomes planes.

    Attributes:
        levels: (B, 3, H, W), or (B, H, W, 3) where `pixels_together`; uint8, contiguous.
        pixels_together: whether the channels of a pixel lie together.
        across: (B,) bool, mirrored left to right.
        down: (B,) bool, mirrored top to bottom.
        planes: (B, 3, H, W) uint8, where they go.
    """

    levels: Array
    pixels_together: bool
    across: Array
    down: Array
    planes: Array


class Levels(NamedTuple):
    """Which images of a batch of B, and what is done to them; an operation reads what it needs.

    Attributes:
        levels: (B, 3, H, W) uint8, contiguous, changed in place.
        rows: (N,) int64, the images.
        columns: (N, 3, W) float32, with `lines` the places of `geometry.Places`.
        lines: (N, 3, H) float32.
        linear: (N, 3, 3) float32, what a colour is multiplied by.
        of_mean: (N, 3, 3) float32, what the mean colour adds.
        factor: (N,) float32, of sharpness.
    """

    levels: Array
    rows: Array
    columns: Array
    lines: Array
    linear: Array
    of_mean: Array
    factor: Array


@kernel
def mirror(work: Mirrored, start: int, stop: int, memory: Memory) -> None:  # noqa: ARG001 -- as all kernels
    """Images into planes, mirrored on the way."""
    for n in range(start, stop):
        take(work.levels[n], work.pixels_together, work.across[n], work.down[n], work.planes[n].reshape(3, -1))


@kernel
def round_places(columns: Array, lines: Array, y: int, height: int, places: Array) -> None:
    """The nearest pixel to each place of a line, as `grid_sample` rounds; what lies outside is moved to the border."""
    width = len(places)
    across, down, x_line, y_line = columns[0], columns[1], lines[0, y], lines[1, y]
    x_scale, y_scale, one, half = float32(width / 2), float32(height / 2), float32(1), float32(0.5)
    x_end, y_end, stride = float32(width), float32(height), int32(width + 3)
    for x in range(width):
        x_place = min(max((across[x] + x_line + one) * x_scale - half, -one), x_end)
        y_place = min(max((down[x] + y_line + one) * y_scale - half, -one), y_end)
        places[x] = uint32((int32(np.rint(y_place)) + int32(1)) * stride + int32(np.rint(x_place)) + int32(1))


@kernel
def nearest(work: Levels, start: int, stop: int, memory: Memory) -> None:
    """Warp by the nearest pixel; black outside."""
    places, found, words = memory.places, memory.corners[0], memory.words.reshape(-1)
    height, width = work.levels.shape[2:]
    for k in range(start, stop):
        image = work.levels[work.rows[k]]
        pack(image, False, memory.words)
        for y in range(height):
            round_places(work.columns[k], work.lines[k], y, height, places)
            for x in range(width):
                found[x] = words[uint64(places[x])]
            red, green, blue = image[0, y], image[1, y], image[2, y]
            for x in range(width):
                word = found[x]
                red[x], green[x], blue[x] = uint8(word & 255), uint8((word >> 8) & 255), uint8((word >> 16) & 255)


@kernel
def recolor(work: Levels, start: int, stop: int, memory: Memory) -> None:
    """Colour by a matrix, rounded to the nearest level."""
    limits, offset = np.empty((3, 2), np.float32), np.zeros(3, np.float32)
    limits[:, 0], limits[:, 1] = 0, 255
    painted = memory.painted.reshape(-1)
    for k in range(start, stop):
        image = work.levels[work.rows[k]]
        take(image, False, False, False, memory.planes)
        added = added_to(memory.planes, work.of_mean[k], offset)
        paint(memory.planes, work.linear[k], added, limits, memory.painted)
        flat = image.reshape(-1)
        for x in range(len(flat)):
            flat[x] = uint8(int32(np.rint(painted[x])))


@kernel
def stretch(work: Levels, start: int, stop: int, memory: Memory) -> None:  # noqa: ARG001 -- as all kernels
    """Autocontrast: each channel over the whole range, cut off to whole levels; a constant channel stays."""
    top, share = float32(255), float32(1.0 / 255.0)
    for k in range(start, stop):
        for channel in range(3):
            flat = work.levels[work.rows[k], channel].reshape(-1)
            low, high = uint8(255), uint8(0)
            for x in range(len(flat)):
                low, high = min(low, flat[x]), max(high, flat[x])
            if low < high:
                least = float32(low)
                scale = (float32(high) - least) * share
                for x in range(len(flat)):
                    value: Any = min(max((float32(flat[x]) - least) / scale, float32(0)), top)
                    flat[x] = uint8(int32(value))


@kernel
def equalize(work: Levels, start: int, stop: int, memory: Memory) -> None:  # noqa: ARG001 -- as all kernels
    """Spread the levels of each channel evenly, by Pillow's rule."""
    counts, table = np.empty((4, 256), np.int64), np.empty(256, np.uint8)
    for k in range(start, stop):
        for channel in range(3):
            flat = work.levels[work.rows[k], channel].reshape(-1)
            counts[:] = 0
            for x in range(len(flat)):  # four counters in turn: the same one twice in a row would wait for itself
                counts[uint64(x & 3), uint64(flat[x])] += 1
            brightest = 255
            while counts[:, brightest].sum() == 0:
                brightest -= 1
            step = (len(flat) - counts[:, brightest].sum()) // 255
            if step == 0:
                continue
            below = 0
            for level in range(256):
                table[level] = min((below + step // 2) // step, 255)
                below += counts[:, level].sum()
            for x in range(len(flat)):
                flat[x] = table[uint64(flat[x])]


@kernel
def sharpen(work: Levels, start: int, stop: int, memory: Memory) -> None:
    """Towards or away from the mean of 3x3 pixels in which the middle counts five times; the border stays."""
    height, width = work.levels.shape[2:]
    share, low, top = float32(1.0 / 13.0), float32(0), float32(255)
    source = memory.planes[0]
    for k in range(start, stop):
        strength = float32(1) - work.factor[k]
        for channel in range(3):
            plane = work.levels[work.rows[k], channel]
            flat = plane.reshape(-1)
            for x in range(len(flat)):
                source[x] = float32(flat[x])
            for y in range(1, height - 1):
                above, line = source[(y - 1) * width : y * width], source[y * width : (y + 1) * width]
                below, into = source[(y + 1) * width : (y + 2) * width], plane[y]
                for x in range(1, width - 1):
                    left, right = uint64(x - 1), uint64(x + 1)
                    total = above[left] + above[x] + above[right] + line[left] + line[right]
                    total += below[left] + below[x] + below[right] + float32(5) * line[x]
                    value = line[x] + (np.rint(total * share) - line[x]) * strength
                    into[x] = uint8(int32(np.rint(min(max(value, low), top))))
