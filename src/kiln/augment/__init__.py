"""Augmentation on the device, on whole batches, with per-sample parameters drawn on the host."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kiln.batch import Batch
from kiln.random import Purpose, uniform


def flip(images: Tensor, mask: Tensor, *, dim: int = -1) -> Tensor:
    """Mirror the images that `mask` names, by reversing an index.

    Args:
        images: (B, C, H, W), any dtype.
        mask: (B,) bool.
        dim: -1 mirrors left to right, -2 top to bottom.
    Returns: a new tensor; the input is not changed.
    """
    return torch.where(mask.view(-1, 1, 1, 1), images.flip(dim), images)


@dataclass(frozen=True)
class Light:
    """Random mirroring, each direction with its own probability."""

    hflip: float = 0.5
    vflip: float = 0.0

    def draw(self, seed: int, epoch: int, keys: NDArray[np.uint64]) -> NDArray[np.float64]:
        """(B, 2) in [0, 1): pure functions of (seed, epoch, sample). `keys` is (B,) uint64."""
        return uniform(seed, Purpose.FLIP, epoch=epoch, sample=keys, num_draws=2)

    def __call__(self, images: Tensor, params: NDArray[np.float64]) -> Tensor:
        """Mirror (B, C, H, W) images by what was drawn for them."""
        for column, (probability, dim) in enumerate(((self.hflip, -1), (self.vflip, -2))):
            if probability > 0:
                mask = torch.from_numpy(params[:, column] < probability)
                images = flip(images, mask.to(images.device, non_blocking=True), dim=dim)
        return images


class OnDevice:
    """Training batches on their device: moved, augmented, normalised. Keeps what makes them repeatable.

    Args:
        batches: host batches, with `from_step` and `at`.
        augment: (images, params) -> images, on uint8; None leaves them.
        device: where the model is.
        normalize: uint8 images -> the model's input; None for images that come already transformed.
    """

    def __init__(
        self,
        batches: Any,
        augment: Light | None,
        *,
        device: torch.device,
        normalize: Callable[[Tensor], Tensor] | None,
    ) -> None:
        self.batches, self.augment = batches, augment
        self.device, self.normalize = device, normalize

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        return map(self._prepare, self.batches)

    def from_step(self, step: int) -> Iterator[Batch]:
        """Batches from a step on, for ever."""
        return map(self._prepare, self.batches.from_step(step))

    def at(self, step: int) -> Batch:
        """The batch of any step, made again."""
        return self._prepare(self.batches.at(step))

    def _prepare(self, batch: Batch) -> Batch:
        if self.device.type == "cuda":
            batch = replace(batch, images=batch.images.pin_memory(), targets=batch.targets.pin_memory())
        batch = batch.to(self.device)
        images = batch.images
        if self.augment is not None and batch.params is not None:
            images = self.augment(images, batch.params)
        return replace(batch, images=images if self.normalize is None else self.normalize(images))
