"""Candidates for near copies: perceptual hashes, all pairs compared by popcount, a block at a time.

Source: the signs of the lowest frequencies of a discrete cosine transform, as in pHash (Zauner 2010, "Implementation and
benchmarking of perceptual image hash functions", section 3.2); differs: each image is also hashed as if its borders had
been cut in a few ways, so that the copy that was cut is found, and a candidate's frequencies must correlate as well.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kiln.data.checks.looks import THUMB_PX

Floats = NDArray[np.float32]

_LOWEST = 8
"""Frequencies per axis: 63 bits without the mean."""
_ROWS, _COLUMNS = 64, 8192
_MOST_PER_ROW = 16
"""Pairs kept of a query and a block of columns, so that images that are all alike do not fill the memory."""
_CHUNK = 4096


def _boxes() -> list[tuple[float, float, float, float]]:
    """(left, top, width, height) of the parts that are hashed, as shares: all, and what is left after some cuts."""
    whole = [(0.0, 0.0, 1.0, 1.0)]
    for side in (0.95, 0.9):
        rest = 1 - side
        whole.append((rest / 2, rest / 2, side, side))
        whole += [(left * rest, top * rest, side, side) for left, top in product((0, 1), repeat=2)]
    return whole


BOXES = _boxes()


def _frequencies(start: float, length: float) -> Floats:
    """(8, 64) what takes a line of pixels to the lowest frequencies of the part of it that begins at `start`."""
    edges = np.linspace(start, start + length, 33) * THUMB_PX
    pixel = np.arange(THUMB_PX)
    covered = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    averages = covered.clip(0) / covered.clip(0).sum(axis=1, keepdims=True)  # (32, 64)
    cosines = np.cos(np.pi * np.arange(_LOWEST)[:, None] * (np.arange(32) + 0.5) / 32)
    return (cosines @ averages).astype(np.float32)


_ALONG = [(_frequencies(top, height), _frequencies(left, width)) for left, top, width, height in BOXES]
_DOWN = np.stack([down for down, _ in _ALONG])
_ACROSS = np.stack([across for _, across in _ALONG])


def spectra(thumbs: NDArray[np.uint8], box: int | NDArray[np.int64] = 0) -> Floats:
    """The lowest frequencies of a part of each thumb, without the mean, of length one.

    Args:
        thumbs: (N, 64, 64).
        box: which of `BOXES`, one for all or one for each.
    Returns: (N, 63).
    """
    found = _DOWN[box] @ thumbs.astype(np.float32) @ np.swapaxes(_ACROSS[box], -1, -2)
    flat = found.reshape(len(thumbs), -1)[:, 1:]
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)


def pack_signs(values: Floats) -> NDArray[np.uint64]:
    """(N, up to 64) -> (N,): a bit per sign."""
    bits = np.packbits(values > 0, axis=1, bitorder="little")
    padded = np.zeros((len(values), 8), np.uint8)
    padded[:, : bits.shape[1]] = bits
    return padded.view(np.uint64)[:, 0]


def hashes_of(thumbs: NDArray[np.uint8], box: int = 0) -> NDArray[np.uint64]:
    """(N,) the perceptual hash of a part of each thumb."""
    parts = [pack_signs(spectra(thumbs[start : start + _CHUNK], box)) for start in range(0, len(thumbs), _CHUNK)]
    return np.concatenate(parts) if parts else np.zeros(0, np.uint64)


class Pairs(NamedTuple):
    """Pairs of indices. `left_out` counts those beyond what was kept of images that are all alike."""

    i: NDArray[np.int64]
    j: NDArray[np.int64]
    left_out: int


def near_pairs(
    queries: NDArray[np.uint64],
    hashes: NDArray[np.uint64],
    *,
    most_bits: int,
    parts: NDArray[np.int64] | None = None,
    workers: int | None = None,
) -> Pairs:
    """All (i, j), i != j, whose query i and hash j differ in few bits.

    Costs about 2 ns a pair; memory does not grow with the number of pairs compared.

    Args:
        queries: (N,).
        hashes: (N,).
        most_bits: of the 64 that may differ.
        parts: (N,) only pairs of two different parts are wanted.
        workers: threads.
    """

    def compare(start: int) -> list[Pairs]:
        found = []
        rows = queries[start : start + _ROWS, None]
        for first in range(0, len(hashes), _COLUMNS):
            distance = np.bitwise_count(rows ^ hashes[None, first : first + _COLUMNS])
            at = np.flatnonzero(distance <= most_bits)
            i, j = np.divmod(at, distance.shape[1])
            i, j = i + start, j + first
            keep = i != j if parts is None else parts[i] != parts[j]
            at, i, j = at[keep], i[keep], j[keep]
            more = max(0, len(at) - _MOST_PER_ROW * len(rows))
            if more:
                closest = np.argsort(distance.reshape(-1)[at], kind="stable")[:-more]
                i, j = i[closest], j[closest]
            if len(i):
                found.append(Pairs(i, j, more))
        return found

    with ThreadPoolExecutor(max(1, (os.cpu_count() or 1) if workers is None else workers)) as pool:
        found = [pairs for some in pool.map(compare, range(0, len(queries), _ROWS)) for pairs in some]
    empty = np.zeros(0, np.int64)
    return Pairs(
        np.concatenate([empty, *(pairs.i for pairs in found)]),
        np.concatenate([empty, *(pairs.j for pairs in found)]),
        sum(pairs.left_out for pairs in found),
    )


class Candidates(NamedTuple):
    """Pairs that may be near copies, each once: the part `BOXES[box]` of thumb i looks like thumb j."""

    i: NDArray[np.int64]
    j: NDArray[np.int64]
    box: NDArray[np.int64]
    left_out: int


def candidates(
    thumbs: NDArray[np.uint8], *, most_bits: int = 14, least_correlation: float = 0.84, workers: int | None = None
) -> Candidates:
    """Pairs that may be near copies of each other.

    Args:
        thumbs: (N, 64, 64), none of them empty.
        most_bits: of the hash that may differ.
        least_correlation: of the lowest frequencies.
        workers: threads.
    """
    hashes = hashes_of(thumbs)
    whole = np.concatenate(
        [np.zeros((0, 63), np.float32), *(spectra(thumbs[s : s + _CHUNK]) for s in range(0, len(thumbs), _CHUNK))]
    )
    best, left_out = [np.zeros((0, 4))], 0
    for box in range(len(BOXES)):
        i, j, more = near_pairs(hashes_of(thumbs, box), hashes, most_bits=most_bits, workers=workers)
        left_out += more
        for start in range(0, len(i), _CHUNK):
            some_i, some_j = i[start : start + _CHUNK], j[start : start + _CHUNK]
            rows, back = np.unique(some_i, return_inverse=True)
            correlation = (spectra(thumbs[rows], box)[back] * whole[some_j]).sum(axis=1)
            keep = correlation >= least_correlation
            columns = (some_i[keep], some_j[keep], np.full(keep.sum(), box), correlation[keep])
            best.append(np.stack([np.asarray(column, np.float64) for column in columns], axis=1))
    found = np.concatenate(best)
    low, high = found[:, :2].min(axis=1), found[:, :2].max(axis=1)
    order = np.lexsort((-found[:, 3], high, low))  # of each unordered pair the best comes first
    found, low, high = found[order], low[order], high[order]
    first = np.ones(len(found), bool)
    first[1:] = (low[1:] != low[:-1]) | (high[1:] != high[:-1])
    i, j, box = found[first, :3].astype(np.int64).T
    return Candidates(i, j, box, left_out)
