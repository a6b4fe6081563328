"""The photographic policies' arithmetic for one image after another, compiled by Numba; `compiled.py` decides when.

One image stays in the processor's cache from its levels to the normalised floats, and no step writes for the whole batch what
the next one only reads again.

Numba vectorises a loop over rows taken out beforehand (`row = rows[y]`) with unsigned places; a signed place may be negative
and count from the end, which costs ten times the time. Products and sums are not contracted, so that a pixel which is only
scaled is the same bits as by torch's operations.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np
from numba import float32, int32, uint32, uint64
from numpy.typing import NDArray

Array = NDArray[Any]


WHOLE, MOVE, FINISH = 0, 1, 2


class Work(NamedTuple):
    """What is done to a batch of B images; every array is contiguous.

    Attributes:
        levels: (B, 3, H, W), or (B, H, W, 3) where `pixels_together`; uint8.
        out: the same in float32, where `out_together`.
        pixels_together: whether the channels of a pixel lie together in `levels`.
        out_together: whether they do in `out`.
        across: (B,) bool, mirrored left to right, when not warped.
        down: (B,) bool, mirrored top to bottom, when not warped.
        warped: (B,) bool.
        matrices: (B, 3, 3) float32, those of `geometry.Places`.
        projective: whether places are divided by the third coordinate.
        linear: (B, 3, 3) float32, what a colour is multiplied by.
        of_mean: (B, 3, 3) float32, what the mean colour adds.
        offset: (3,) float32, what is added.
        limits: (3, 2) float32, the smallest and largest output of each channel.
        boxes: (B, 4) int64: top, left, bottom, right of what is erased.
        fill: what it becomes.
        stage: `WHOLE`; or `MOVE` into `pixels`, where something happens to them before `FINISH`.
        pixels: (N, 3, H, W) float32 in 0..255, moved images between the two stages.
        first: the image in `pixels[0]`.
    """

    levels: Array
    out: Array
    pixels_together: bool
    out_together: bool
    across: Array
    down: Array
    warped: Array
    matrices: Array
    projective: bool
    linear: Array
    of_mean: Array
    offset: Array
    limits: Array
    boxes: Array
    fill: float
    stage: int
    pixels: Array
    first: int


class Memory(NamedTuple):
    """What one thread writes on.

    Attributes:
        words: (H + 3, W + 3) uint32, an image with its three channels in one word, black at its border: one line and column
            before it, two behind it. So a place outside needs no question, and one load brings a pixel.
        planes: (3, H * W) float32, a moved image.
        painted: (3, H * W) float32, the same after colour.
        places: (W,) uint32, where the pixels of a line come from.
        shares: (2, W) float32, how far each place lies between four pixels.
        corners: (4, W) uint32, the four pixels.
    """

    words: Array
    planes: Array
    painted: Array
    places: Array
    shares: Array
    corners: Array


def memory(height: int, width: int) -> Memory:
    """Memory for images of one size."""
    return Memory(
        words=np.zeros((height + 3, width + 3), np.uint32),
        planes=np.empty((3, height * width), np.float32),
        painted=np.empty((3, height * width), np.float32),
        places=np.empty(width, np.uint32),
        shares=np.empty((2, width), np.float32),
        corners=np.empty((4, width), np.uint32),
    )


def kernel(function: Any = None, *, reassociate: bool = False) -> Any:
    """Compile a function when it is first called, and keep the result beside the source, or in the user's cache folder."""
    if function is None:
        return lambda function: kernel(function, reassociate=reassociate)
    flags = {"nsz", "nnan", "ninf"} | ({"reassoc"} if reassociate else set())
    options = {"nogil": True, "error_model": "numpy", "fastmath": flags}
    try:
        return numba.njit(function, cache=True, **options)
    except RuntimeError:  # no folder to keep compiled code in: then it is compiled in each process
        return numba.njit(function, **options)


@kernel
def take(levels: Array, pixels_together: bool, across: bool, down: bool, planes: Array) -> None:
    """An image into planes (3, H * W), mirrored on the way; float32, or uint8 for `level_kernels.py`."""
    height, width = levels.shape[:2] if pixels_together else levels.shape[1:]
    for channel in range(3):
        for y in range(height):
            begin = width * (height - 1 - y if down else y)
            into = planes[channel, begin : begin + width]
            if pixels_together:
                line = levels[y].reshape(-1)
                for x in range(width):
                    into[uint64(width - 1 - x if across else x)] = line[uint64(3 * x + channel)]
            else:
                line = levels[channel, y]
                if across:
                    for x in range(width):
                        into[x] = line[uint64(width - 1 - x)]
                else:
                    for x in range(width):
                        into[x] = line[x]


@kernel
def pack(levels: Array, pixels_together: bool, words: Array) -> None:
    """An image into the inside of its words."""
    height, width = words.shape[0] - 3, words.shape[1] - 3
    for y in range(height):
        into = words[y + 1, 1 : width + 1]
        if pixels_together:
            line = levels[y].reshape(-1)
            for x in range(width):
                at = uint64(3 * x)
                into[x] = uint32(line[at]) | (uint32(line[at + uint64(1)]) << 8) | (uint32(line[at + uint64(2)]) << 16)
        else:
            red, green, blue = levels[0, y], levels[1, y], levels[2, y]
            for x in range(width):
                into[x] = uint32(red[x]) | (uint32(green[x]) << 8) | (uint32(blue[x]) << 16)


@kernel
def locate(matrix: Array, y: int, projective: bool, height: int, places: Array, shares: Array) -> None:
    """Where the pixels of a line come from, in the order of `Places` and `grid_sample`: theirs to the last bit, but for
    what lies outside, which is moved to the border.
    """
    width = len(places)
    right, below = shares[0], shares[1]
    one, half, x_middle = float32(1), float32(0.5), float32((width - 1) / 2)
    y_here = float32(y) - float32((height - 1) / 2)
    of_x, of_y, of_depth = matrix[0, 0], matrix[1, 0], matrix[2, 0]
    x_line, y_line = matrix[0, 1] * y_here + matrix[0, 2], matrix[1, 1] * y_here + matrix[1, 2]
    depth_line = matrix[2, 1] * y_here + matrix[2, 2]
    x_scale, y_scale, x_end, y_end = float32(width / 2), float32(height / 2), float32(width), float32(height)
    stride = int32(width + 3)
    for x in range(width):
        x_here = float32(int32(x)) - x_middle
        x_place, y_place = of_x * x_here + x_line, of_y * x_here + y_line
        if projective:
            divisor = of_depth * x_here + depth_line
            x_place /= divisor
            y_place /= divisor
        x_place = min(max((x_place + one) * x_scale - half, -one), x_end)
        y_place = min(max((y_place + one) * y_scale - half, -one), y_end)
        x_floor, y_floor = np.floor(x_place), np.floor(y_place)
        right[x] = x_place - x_floor
        below[x] = y_place - y_floor
        places[x] = uint32((int32(y_floor) + int32(1)) * stride + int32(x_floor) + int32(1))


@kernel
def warp(matrix: Array, projective: bool, planes: Array, memory: Memory) -> None:
    """The image in words, interpolated, into planes (3, H * W)."""
    width = len(memory.places)
    height = planes.shape[1] // width
    stride, step = uint64(width + 3), uint64(1)
    words = memory.words.reshape(-1)
    places, right, below, corners = memory.places, memory.shares[0], memory.shares[1], memory.corners
    upper_left, upper_right, lower_left, lower_right = corners[0], corners[1], corners[2], corners[3]
    one = float32(1)
    for y in range(height):
        locate(matrix, y, projective, height, places, memory.shares)
        for x in range(width):
            place = uint64(places[x])
            upper_left[x] = words[place]
            upper_right[x] = words[place + step]
            lower_left[x] = words[place + stride]
            lower_right[x] = words[place + stride + step]
        for channel in range(3):
            line, shift = planes[channel, y * width : (y + 1) * width], uint32(8 * channel)
            for x in range(width):
                to_right, to_below = right[x], below[x]
                line[x] = (
                    float32(int32((upper_left[x] >> shift) & 255)) * ((one - to_right) * (one - to_below))
                    + float32(int32((upper_right[x] >> shift) & 255)) * (to_right * (one - to_below))
                    + float32(int32((lower_left[x] >> shift) & 255)) * ((one - to_right) * to_below)
                    + float32(int32((lower_right[x] >> shift) & 255)) * (to_right * to_below)
                )


@kernel(reassociate=True)
def mean_of(plane: Array) -> float:
    """Of one channel: float32 within 256 pixels, float64 over them."""
    total: Any = 0.0
    num = len(plane)
    for start in range(0, num, 256):
        part = plane[start : min(start + 256, num)]
        partial: Any = float32(0)
        for x in range(len(part)):
            partial += part[x]
        total += partial
    return total / num


@kernel
def added_to(planes: Array, of_mean: Array, offset: Array) -> Array:
    """What is added to every pixel, (3,): a constant, and what the mean colour says."""
    added = offset.copy()
    if of_mean.any():
        mean_color = (mean_of(planes[0]), mean_of(planes[1]), mean_of(planes[2]))
        for channel in range(3):
            total = 0.0
            for other in range(3):
                total += of_mean[channel, other] * mean_color[other]
            added[channel] += float32(total)
    return added


@kernel
def paint(planes: Array, linear: Array, added: Array, limits: Array, painted: Array) -> None:
    """Colour, normalisation and clamp, (3, H * W) into (3, H * W)."""
    red, green, blue = planes[0], planes[1], planes[2]
    for channel in range(3):
        of_red, of_green, of_blue, plus = linear[channel, 0], linear[channel, 1], linear[channel, 2], added[channel]
        least, most, into = limits[channel, 0], limits[channel, 1], painted[channel]
        for x in range(len(red)):
            into[x] = min(max(of_red * red[x] + of_green * green[x] + of_blue * blue[x] + plus, least), most)


@kernel
def interleave(painted: Array, out: Array) -> None:
    """Planes (3, H * W) into pixels (H * W * 3,)."""
    red, green, blue = painted[0], painted[1], painted[2]
    for x in range(len(red)):
        at = uint64(3 * x)
        out[at], out[at + uint64(1)], out[at + uint64(2)] = red[x], green[x], blue[x]


@kernel
def move_one(work: Work, n: int, planes: Array, memory: Memory) -> None:
    """An image mirrored or warped into planes (3, H * W)."""
    if work.warped[n]:
        pack(work.levels[n], work.pixels_together, memory.words)
        warp(work.matrices[n], work.projective, planes, memory)
    else:
        take(work.levels[n], work.pixels_together, work.across[n], work.down[n], planes)


@kernel
def paint_one(work: Work, n: int, planes: Array, memory: Memory) -> None:
    """Colour, normalisation and erasing of a moved image."""
    added = added_to(planes, work.of_mean[n], work.offset)
    top, left, bottom, right = work.boxes[n]
    if work.out_together:
        paint(planes, work.linear[n], added, work.limits, memory.painted)
        interleave(memory.painted, work.out[n].reshape(-1))
        work.out[n, top:bottom, left:right, :] = work.fill
    else:
        paint(planes, work.linear[n], added, work.limits, work.out[n].reshape(3, -1))
        work.out[n, :, top:bottom, left:right] = work.fill


@kernel
def augment(work: Work, start: int, stop: int, memory: Memory) -> None:
    """The images from `start` to `stop`: mirrored or warped, then coloured, normalised and erased, as `work.stage` says."""
    for n in range(start, stop):
        planes = memory.planes if work.stage == WHOLE else work.pixels[n - work.first].reshape(3, -1)
        if work.stage != FINISH:
            move_one(work, n, planes, memory)
        if work.stage != MOVE:
            paint_one(work, n, planes, memory)
