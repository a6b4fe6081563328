"""A training set that lives on the device: the host sends numbers, and images are gathered and cropped there."""

from __future__ import annotations

from typing import Any

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from kiln.data.decode import Array
from kiln.data.images import BadSample, ContractImages, KeptImages, PaddedCropImages
from kiln.data.prefetch import prefetched

_ROWS_AT_ONCE = 256
NUM_PLACE_COLUMNS = 3
"""Slot, and the first row and column of what is seen of an image with its border."""


def free_bytes(device: torch.device) -> int:
    """Bytes that are free on a device now; main memory's where the device shares it."""
    if device.type in ("cpu", "mps"):
        return psutil.virtual_memory().available
    return torch.accelerator.get_memory_info(device)[0]


class ResidentImages:
    """Images of one size as one uint8 tensor on the device, the same to the last bit as where the host makes them.

    A batch leaves the host as places (B, 3); `gather` makes images of them. Every image is read and decoded once, when
    this object is made; one that cannot be read is bad whenever its turn comes, as it would be elsewhere.

    Args:
        images: of one size, perhaps moved within a border.
        indices: the samples that are held.
        device: where they are held.
        workers: threads that read them.
    """

    def __init__(
        self,
        images: ContractImages | KeptImages | PaddedCropImages,
        indices: NDArray[np.int64],
        *,
        device: torch.device,
        workers: int = 0,
    ) -> None:
        self.images = images
        self._plain = images.images if isinstance(images, PaddedCropImages) else images
        self._slots = np.full(int(indices.max()) + 1 if len(indices) else 0, -1, np.int64)
        self._slots[indices] = np.arange(len(indices))
        self._bad: dict[int, BadSample] = {}
        self.data = torch.empty((len(indices), *self.shape), dtype=torch.uint8, device=device)  # (N, H, W, C)
        starts = range(0, len(indices), _ROWS_AT_ONCE)
        cuts = [indices[start : start + _ROWS_AT_ONCE] for start in starts]
        for start, rows in zip(starts, prefetched(self._read, cuts, workers=workers, ahead=workers), strict=True):
            self.data[start : start + len(rows)] = torch.from_numpy(rows)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of one image."""
        return self.images.shape

    def draw(self, seed: int, epoch: int, keys: NDArray[np.uint64]) -> NDArray[np.float64] | None:
        """See `Images`."""
        return self.images.draw(seed, epoch, keys)

    def places(
        self, indices: NDArray[np.int64], draws: NDArray[np.float64] | None
    ) -> tuple[Tensor, list[int], list[tuple[int, BadSample]]]:
        """(B, 3) int64 on the host for these samples, which rows of them are good, and what is wrong with the others."""
        places = np.zeros((len(indices), NUM_PLACE_COLUMNS), np.int64)
        places[:, 0] = self._slots[indices]
        if isinstance(self.images, PaddedCropImages):
            places[:, 1:] = self.images.padding if draws is None else self.images.offsets(draws)
        asked = indices.tolist()
        good = [row for row, index in enumerate(asked) if index not in self._bad]
        return torch.from_numpy(places), good, [(index, self._bad[index]) for index in asked if index in self._bad]

    def gather(self, places: Tensor) -> Tensor:
        """(B, C, H, W) uint8 of places (B, 3) on the device; channels lie innermost. What lies outside is black."""
        slots, down, across = places.unbind(1)
        whole = self.data.index_select(0, slots)  # (B, H, W, C), a copy
        if not isinstance(self.images, PaddedCropImages):
            return whole.permute(0, 3, 1, 2)
        height, width, _ = self.shape
        pad = self.images.padding
        canvas = F.pad(whole, (0, 0, pad, pad, pad, pad))
        windows = canvas.unfold(1, height, 1).unfold(2, width, 1)  # a view: (B, 2p + 1, 2p + 1, C, H, W)
        rows = torch.arange(len(places), device=places.device)
        return windows.permute(0, 1, 2, 4, 5, 3)[rows, down, across].contiguous().permute(0, 3, 1, 2)

    def load(self, index: int, draws: NDArray[np.float64] | None = None, out: Array | None = None) -> Any:
        """See `Images`: one image, made on the host."""
        return self.images.load(index, draws, out)

    def many(self, indices: NDArray[np.int64], draws: NDArray[np.float64] | None) -> Array | None:
        """See `Images`: made on the host."""
        return self.images.many(indices, draws)

    def _read(self, indices: NDArray[np.int64]) -> Array:
        """(B, H, W, C); black where an image cannot be read, which is noted."""
        found = self._plain.many(indices, None)
        if found is not None:
            return found
        rows = np.zeros((len(indices), *self.shape), np.uint8)
        for row, index in zip(rows, indices.tolist(), strict=True):
            try:
                self._plain.load(index, None, row)
            except BadSample as error:
                self._bad[index] = error
        return rows
