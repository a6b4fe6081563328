"""A batch in pieces that stay in the processor's cache, on as many threads as torch may use."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

CHUNK_PIXELS = 2**17
"""Values of all channels in one piece: half a MiB as float32, so that a step finds what the last one left in the cache."""

Piece = TypeVar("Piece")
_pools: dict[int, ThreadPoolExecutor] = {}
os.register_at_fork(after_in_child=_pools.clear)  # threads do not survive a fork


def for_each(work: Callable[[Piece], None], pieces: Iterable[Piece]) -> None:
    """Do independent work, each piece on one thread; on as many threads as torch uses for one operation.

    One thread for a piece beats all threads for each operation: no barrier after each, and the piece stays in the
    cache of one core. The pool sleeps between batches.
    """
    pieces = list(pieces)
    _keep_freed_memory()
    num_threads = torch.get_num_threads()
    if num_threads == 1 or len(pieces) < 2:
        for piece in pieces:
            work(piece)
        return
    if num_threads not in _pools:
        _pools[num_threads] = ThreadPoolExecutor(
            num_threads, thread_name_prefix="kiln-augment", initializer=torch.set_num_threads, initargs=(1,)
        )
    gradients = torch.is_grad_enabled()

    def quietly(piece: Piece) -> None:
        with torch.set_grad_enabled(gradients):
            work(piece)

    for done in [_pools[num_threads].submit(quietly, piece) for piece in pieces]:
        done.result()


@cache
def _keep_freed_memory() -> None:
    """Teach glibc, once, to keep freed blocks of this size for the next piece instead of giving them back.

    It learns from the largest block that was freed, up to 32 MiB. Until then every intermediate result of a piece comes
    fresh from the system, at a page fault for each 4 KiB: more than the arithmetic takes. Elsewhere this does nothing.
    """
    np.empty(31 * 2**20, np.uint8)  # never touched, so it takes no memory


def pieces_of(images: Tensor) -> list[slice]:
    """The rows of a batch, cut for the cache on a CPU, in one piece elsewhere."""
    size = chunk_rows(images)
    return [slice(start, min(start + size, len(images))) for start in range(0, len(images), size)]


def chunk_rows(images: Tensor) -> int:
    """How many images make a piece."""
    if images.device.type != "cpu":
        return max(len(images), 1)
    return max(1, CHUNK_PIXELS // max(1, images[:1].numel()))
