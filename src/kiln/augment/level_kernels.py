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
        matrices: (N, 3, 3) float32, those of `geometry.Places`, none of them projective.
        linear: (N, 3, 3) float32, what a colour is multiplied by.
        of_mean: (N, 3, 3) float32, what the mean colour adds.
        magnitudes: (N,) float32: the factor of sharpness, the first level that is inverted, the mask of the bits that stay.
    """

    levels: Array
    rows: Array
    matrices: Array
    linear: Array
    of_mean: Array
    magnitudes: Array


@kernel
def mirror(work: Mirrored, start: int, stop: int, memory: Memory) -> None:  # noqa: ARG001 -- as all kernels
    """Images into planes, mirrored on the way."""
    for n in range(start, stop):
        take(work.levels[n], work.pixels_together, work.across[n], work.down[n], work.planes[n].reshape(3, -1))


@kernel
def round_places(matrix: Array, y: int, height: int, places: Array) -> None:
    """The nearest pixel to each place of a line, as `grid_sample` rounds; what lies outside is moved to the border."""
    width = len(places)
    one, half, x_middle = float32(1), float32(0.5), float32((width - 1) / 2)
    y_here = float32(y) - float32((height - 1) / 2)
    of_x, of_y = matrix[0, 0], matrix[1, 0]
    x_line, y_line = matrix[0, 1] * y_here + matrix[0, 2], matrix[1, 1] * y_here + matrix[1, 2]
    x_scale, y_scale, x_end, y_end = float32(width / 2), float32(height / 2), float32(width), float32(height)
    stride = int32(width + 3)
    for x in range(width):
        x_here = float32(int32(x)) - x_middle
        x_place = min(max((of_x * x_here + x_line + one) * x_scale - half, -one), x_end)
        y_place = min(max((of_y * x_here + y_line + one) * y_scale - half, -one), y_end)
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
            round_places(work.matrices[k], y, height, places)
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
def mask_bits(work: Levels, start: int, stop: int, memory: Memory) -> None:  # noqa: ARG001 -- as all kernels
    """Posterise: the highest bits stay."""
    for k in range(start, stop):
        mask, flat = uint8(int32(work.magnitudes[k])), work.levels[work.rows[k]].reshape(-1)
        for x in range(len(flat)):
            flat[x] &= mask


@kernel
def invert_from(work: Levels, start: int, stop: int, memory: Memory) -> None:  # noqa: ARG001 -- as all kernels
    """Solarise: the levels from a threshold on are inverted."""
    for k in range(start, stop):
        limit, flat = work.magnitudes[k], work.levels[work.rows[k]].reshape(-1)
        for x in range(len(flat)):
            level = flat[x]
            flat[x] = uint8(255) - level if float32(level) >= limit else level


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
        strength = float32(1) - work.magnitudes[k]
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
