"""How a source reads what its names stand for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from kiln import pixels
from kiln.data.storage import Storage

if TYPE_CHECKING:
    import torch

_HEAD_BYTES = 64 << 10


class Reader(Protocol):
    """How a source reads what its names stand for. Safe from many threads, after a fork, and when pickled."""

    has_headers: bool

    def read(self, name: Any) -> bytes | np.ndarray | torch.Tensor:
        """The bytes or the array of one sample."""
        ...

    def header(self, name: Any, max_pixels: int) -> pixels.Header:
        """Size and mode of one sample."""
        ...


class FileReader:
    """Reads files of a storage."""

    has_headers = True

    def __init__(self, storage: Storage) -> None:
        self.storage = storage

    def read(self, name: str) -> bytes:
        """The bytes of a file. Raises DataError: it cannot be read."""
        return self.storage.read(name)

    def header(self, name: str, max_pixels: int) -> pixels.Header:
        """The header, from the file on disk or from the first bytes of a member.

        Raises: PixelError: not an image, damaged, or too many pixels. DataError: it cannot be read.
        """
        path = self.storage.path_of(name)
        if path is not None:
            return pixels.probe(path, max_pixels=max_pixels)
        head = self.storage.read(name, _HEAD_BYTES)
        try:
            return pixels.probe(head, max_pixels=max_pixels)
        except pixels.PixelError:
            if len(head) < _HEAD_BYTES:
                raise
        return pixels.probe(self.storage.read(name), max_pixels=max_pixels)


def header_of(item: bytes | np.ndarray, max_pixels: int) -> pixels.Header:
    """The header of what was read: file bytes, or an array (H, W, C), which has none of its own.

    Raises: PixelError: not an image, damaged, or too many pixels.
    """
    if isinstance(item, bytes):
        return pixels.probe(item, max_pixels=max_pixels)
    height, width, channels = item.shape
    mode = {1: "L", 3: "RGB", 4: "RGBA"}.get(channels, str(channels))
    return pixels.Header(width, height, mode, "array", 1, 1)
