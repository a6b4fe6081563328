"""Memory for output batches that comes back when the last tensor on it is gone.

A batch of 128 images at 224 px is 77 MB as float32. Fresh from the system it costs a page fault every 4 KiB, several
times what filling it costs; glibc gives blocks of this size back at once. On an accelerator torch's own cache does this.
"""

from __future__ import annotations

import math
import weakref
from collections import deque

import numpy as np
import torch
from torch import Tensor

from kiln.augment.values import is_channels_last

SMALLEST_BYTES = 2**20
MAX_FREE = 2
"""Blocks kept for the next batch: a loop holds one batch while the next one is made."""

_free: deque[np.ndarray] = deque(maxlen=MAX_FREE)


def recycled_like(images: Tensor, dtype: torch.dtype, *, planes: bool = False) -> Tensor:
    """An uninitialised tensor like `torch.empty_like(images, dtype=dtype)`, on memory that is used again.

    Args:
        images: whose shape, device and order in memory it has.
        dtype: of the tensor.
        planes: (B, C, H, W) in memory, whatever the order of `images`.
    """
    num_bytes = images.numel() * dtype.itemsize
    if images.device.type != "cpu" or num_bytes < SMALLEST_BYTES:
        order = torch.contiguous_format if planes else torch.preserve_format
        return torch.empty_like(images, dtype=dtype, memory_format=order)
    block = _take(num_bytes)
    lent = block[:num_bytes]  # torch keeps this array as long as any tensor looks at the memory
    weakref.finalize(lent, _free.append, block).atexit = False
    flat = torch.from_numpy(lent).view(dtype)
    if is_channels_last(images) and not planes:
        num, channels, height, width = images.shape
        return flat.view(num, height, width, channels).permute(0, 3, 1, 2)
    return flat.view(images.shape)


def _take(num_bytes: int) -> np.ndarray:
    """A free block that is large enough and not twice too large, or a new one."""
    for _ in range(len(_free)):
        try:
            block = _free.popleft()
        except IndexError:  # another thread took it
            break
        if num_bytes <= len(block) < 2 * num_bytes:
            return block
        _free.append(block)
    return np.empty(math.ceil(num_bytes / 4096) * 4096, np.uint8)
