"""The check before training: every file's header, without decoding one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kiln.errors import KilnError
from kiln.pixels import MAX_PIXELS, PixelError

if TYPE_CHECKING:
    from kiln.data.source import Source

_CHUNK = 256


@dataclass(frozen=True)
class BadFile:
    """A file that cannot become an image.

    Attributes:
        key: of the sample.
        split: `train`, `val`, `test`, or nothing.
        reason: one of `kiln.pixels.PixelError.reason`, such as `empty`, `not_an_image`, `truncated`, `unreadable`.
        detail: one line for people.
    """

    key: str
    split: str
    reason: str
    detail: str


def check_headers(
    source: Source,
    indices: Sequence[int] | NDArray[np.integer],
    *,
    max_pixels: int = MAX_PIXELS,
    workers: int | None = None,
    split: str | None = None,
) -> list[BadFile]:
    """Read the header of every file; a damaged body is found only when it is decoded.

    Args:
        source: the samples. Arrays of a data set have no header and are not read.
        indices: which samples.
        max_pixels: an image with more is bad.
        workers: threads; without it, four per processor and 32 at most, because the disk is what is waited for.
        split: the name to report; without it, what the source says.
    Returns: the bad files, in the order of `indices`.
    """
    if not source.has_headers:
        return []
    order = [int(index) for index in indices]
    chunks = [order[start : start + _CHUNK] for start in range(0, len(order), _CHUNK)]

    def check(chunk: list[int]) -> list[BadFile]:
        return [bad for index in chunk if (bad := _check(source, index, max_pixels, split)) is not None]

    with ThreadPoolExecutor(workers or min(32, 4 * (os.cpu_count() or 1))) as pool:
        return [bad for part in pool.map(check, chunks) for bad in part]


def _check(source: Source, index: int, max_pixels: int, split: str | None) -> BadFile | None:
    try:
        source.header(index, max_pixels=max_pixels)
    except PixelError as error:
        reason, detail = error.reason, str(error)
    except KilnError as error:
        reason, detail = "unreadable", error.what
    else:
        return None
    where = split if split is not None else (source.splits[index] if source.splits is not None else None)
    return BadFile(source.keys[index], where or "", reason, detail)
