"""Candidates for a shared backdrop: what surrounds the middle of a picture, hashed by itself."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kiln.data.checks.similar import near_pairs, pack_signs

_CELLS, _WIDTH = 16, 3
_LEAST_LEVELS = 6.0
"""Standard deviation, of 255, below which a border says nothing: white paper is no scene."""
_CHUNK = 4096
_MOST_BITS = 12
_LEAST_CORRELATION = 0.85
_MOST_PARTNERS = 3
"""Pairs per picture that are looked at closely: enough to connect all that share a backdrop."""


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


def backdrops_of(thumbs: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """The border of each thumb without its smooth part, of length one; and whether there is anything on it.

    Args:
        thumbs: (N, 64, 64).
    Returns: (N, 156), and (N,).
    """
    borders, textured = [np.zeros((0, len(_PLACES)), np.float32)], [np.zeros(0, bool)]
    for start in range(0, len(thumbs), _CHUNK):
        some = thumbs[start : start + _CHUNK].astype(np.float32)
        side = some.shape[1] // _CELLS
        cells = some.reshape(len(some), _CELLS, side, _CELLS, side).mean(axis=(2, 4)).reshape(len(some), -1)
        rest = cells[:, _PLACES] @ _REST
        textured.append(rest.std(axis=1) >= _LEAST_LEVELS)
        borders.append(rest / np.maximum(np.linalg.norm(rest, axis=1, keepdims=True), 1e-6))
    return np.concatenate(borders), np.concatenate(textured)


def alike_backdrops(
    borders: NDArray[np.float32], parts: NDArray[np.int64], *, workers: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs i < j of different parts whose borders correlate; of each i the few that do most.

    Args:
        borders: (N, 156), all textured.
        parts: (N,).
        workers: threads.
    """
    hashes = pack_signs(borders[:, _PAIRS[0]] - borders[:, _PAIRS[1]])
    found = near_pairs(hashes, hashes, most_bits=_MOST_BITS, parts=parts, workers=workers)
    kept = [np.zeros((0, 3))]
    for start in range(0, len(found.i), _CHUNK):
        i, j = found.i[start : start + _CHUNK], found.j[start : start + _CHUNK]
        correlation = (borders[i] * borders[j]).sum(axis=1)
        keep = correlation >= _LEAST_CORRELATION
        columns = (i[keep], j[keep], correlation[keep])
        kept.append(np.stack([column.astype(np.float64) for column in columns], axis=1))
    pairs = np.concatenate(kept)
    pairs = pairs[np.lexsort((-pairs[:, 2], pairs[:, 0]))]
    rank = np.arange(len(pairs)) - np.searchsorted(pairs[:, 0], pairs[:, 0])
    few = np.unique(np.sort(pairs[rank < _MOST_PARTNERS, :2].astype(np.int64), axis=1), axis=0)
    return few[:, 0], few[:, 1]
