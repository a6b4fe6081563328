"""What travels from the loader to the step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


@dataclass(slots=True, frozen=True)
class Batch:
    """One cut of the global order.

    `fit` needs only `images` and `targets`; the rest is what makes a batch repeatable and its bad samples harmless.

    Attributes:
        images: (B, ...) inputs of the model; uint8 (B, C, H, W) until augmentation, any tensor for other uses.
        targets: (B, ...).
        positions: (B,) int64 NumPy, places in the global order of the epoch.
        indices: (B,) int64 NumPy, samples of the source.
        weights: (B,) float32, 0 for a bad sample; None when every sample counts fully.
        params: (B, P) float64 NumPy, the augmentation parameters drawn on the host.
        sizes: (B, 2) int64, height and width of each image where they differ and are padded to the largest; else None.
        features: `images` are what a frozen backbone made of them: the input of the head.
        total: samples that the whole step counts over all processes and micro-batches, when it is not `len(self)`.
    """

    images: Any
    targets: Any
    positions: np.ndarray | None = None
    indices: np.ndarray | None = None
    weights: Tensor | None = None
    params: np.ndarray | None = None
    sizes: Tensor | None = None
    features: bool = False
    total: float | None = None

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def mask(self) -> Tensor | None:
        """(B, H, W) bool, true where a padded batch holds image; None where all images are of one size."""
        return None if self.sizes is None else mask_of(self.sizes, self.images.shape[-2], self.images.shape[-1])

    def to(self, device: Any, *, non_blocking: bool = True) -> Batch:
        """The same batch with its tensors on `device`."""
        images = self.images.to(device, non_blocking=non_blocking)
        targets = self.targets.to(device, non_blocking=non_blocking)
        weights = None if self.weights is None else self.weights.to(device, non_blocking=non_blocking)
        sizes = None if self.sizes is None else self.sizes.to(device, non_blocking=non_blocking)
        return replace(self, images=images, targets=targets, weights=weights, sizes=sizes)

    def cut(self, start: int, stop: int) -> Batch:
        """Samples `start` to `stop`; `total` stays what it was."""

        def part(value: Any) -> Any:
            return None if value is None else value[start:stop]

        return Batch(
            images=part(self.images),
            targets=part(self.targets),
            positions=part(self.positions),
            indices=part(self.indices),
            weights=part(self.weights),
            params=part(self.params),
            sizes=part(self.sizes),
            features=self.features,
            total=self.total,
        )

    def split(self, size: int) -> Iterator[Batch]:
        """Micro-batches of at most `size` samples, in order."""
        for start in range(0, len(self), size):
            yield self.cut(start, start + size)


def mask_of(sizes: Tensor, height: int, width: int) -> Tensor:
    """(B, height, width) bool, true inside each of the sizes (B, 2)."""
    down = sizes.new_ones(height).cumsum(0) <= sizes[:, :1]  # (B, H)
    across = sizes.new_ones(width).cumsum(0) <= sizes[:, 1:]  # (B, W)
    return down[:, :, None] & across[:, None, :]


def as_batch(item: Any) -> Batch:
    """Take what any iterable of inputs and targets yields: a `Batch`, or a pair of tensors."""
    if isinstance(item, Batch):
        return item
    inputs, targets = item
    return Batch(images=inputs, targets=targets)
