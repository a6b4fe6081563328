"""Candidates for a shared backdrop: what surrounds the middle of a picture, hashed by itself."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kiln.data.checks.similar import pack_signs

_CELLS, _WIDTH = 16, 3
_LEAST_LEVELS = 6.0
"""Standard deviation, of 255, below which a border says nothing: white paper is no scene."""
_CHUNK = 4096
MOST_BITS = 12


def _ring() -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]:
    """Places of the cells around the middle; what removes a smooth slope from them; and 64 pairs of them."""
    rows, columns = np.mgrid[:_CELLS, :_CELLS]
    edge = np.minimum.reduce([rows, columns, _CELLS - 1 - rows, _CELLS - 1 - columns]) < _WIDTH
    y, x = rows[edge] / _CELLS - 0.5, columns[edge] / _CELLS - 0.5
    smooth = np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], axis=1)
    rest = np.eye(len(x)) - smooth @ np.linalg.pinv(smooth)
    first = np.arange(64) * 61 % len(x)  # 61 and 95: spread the pairs over the ring, each cell used about once
    second = (first + 95 + 7 * np.arange(64)) % len(x)
    return np.flatnonzero(edge), rest.astype(np.float32), np.stack([first, second])


_PLACES, _REST, _PAIRS = _ring()


def backdrop_hashes(thumbs: NDArray[np.uint8]) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """A hash of the border of each thumb, and whether there is anything on it.

    Args:
        thumbs: (N, 64, 64).
    """
    hashes, textured = [np.zeros(0, np.uint64)], [np.zeros(0, bool)]
    for start in range(0, len(thumbs), _CHUNK):
        some = thumbs[start : start + _CHUNK].astype(np.float32)
        side = some.shape[1] // _CELLS
        cells = some.reshape(len(some), _CELLS, side, _CELLS, side).mean(axis=(2, 4)).reshape(len(some), -1)
        rest = cells[:, _PLACES] @ _REST
        textured.append(rest.std(axis=1) >= _LEAST_LEVELS)
        hashes.append(pack_signs(rest[:, _PAIRS[0]] - rest[:, _PAIRS[1]]))
    return np.concatenate(hashes), np.concatenate(textured)
