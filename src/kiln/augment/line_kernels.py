"""Mirroring and normalising bytes line by line, compiled by Numba: all that light augmentation does on the device."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import uint64

from kiln.augment.kernels import Array, kernel


class Lines(NamedTuple):
    """A batch of B images as lines of L bytes.

    Attributes:
        levels: (B, P, H, L) uint8: P planes of one channel, or one where the channels of a pixel lie together.
        out: the same in float32.
        across: (B,) bool, mirrored left to right.
        down: (B,) bool, mirrored top to bottom.
        pixels_together: whether a line holds three bytes for each pixel; else one.
        scale: (P, L) float32, what each byte of a line is multiplied by.
        offset: (P, L) float32, what is added.
    """

    levels: Array
    out: Array
    across: Array
    down: Array
    pixels_together: bool
    scale: Array
    offset: Array


def line_memory(height: int, width: int) -> Array:  # noqa: ARG001 - as for any kernel
    """Memory for a line of three bytes a pixel."""
    return np.empty(3 * width, np.uint8)


@kernel
def mirror_pixels(line: Array, mirrored: Array) -> None:
    """Three bytes a pixel, in the other order of pixels. Written out, because a loop over three costs twice the time."""
    end = len(line)
    for x in range(end // 3):
        into, of = uint64(3 * x), uint64(end - 3 - 3 * x)
        mirrored[into] = line[of]
        mirrored[into + uint64(1)] = line[of + uint64(1)]
        mirrored[into + uint64(2)] = line[of + uint64(2)]


@kernel
def mirror_bytes(line: Array, mirrored: Array) -> None:
    """One byte a pixel."""
    last = len(line) - 1
    for x in range(last + 1):
        mirrored[x] = line[uint64(last - x)]


@kernel
def normalize_lines(work: Lines, start: int, stop: int, memory: Array) -> None:
    """The images from `start` to `stop`, mirrored and normalised."""
    num_planes, height, length = work.levels.shape[1:]
    mirrored = memory[:length]
    for n in range(start, stop):
        for plane in range(num_planes):
            scale, offset = work.scale[plane], work.offset[plane]
            for y in range(height):
                line = work.levels[n, plane, height - 1 - y if work.down[n] else y]
                if work.across[n]:
                    if work.pixels_together:
                        mirror_pixels(line, mirrored)
                    else:
                        mirror_bytes(line, mirrored)
                    line = mirrored
                into = work.out[n, plane, y]
                for i in range(length):
                    into[i] = line[i] * scale[i] + offset[i]
