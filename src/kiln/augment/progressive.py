"""Progressive resizing: smaller images first, which cost less, and the model's own size in the end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch.nn import functional as F

from kiln.batch import Batch

MULTIPLE = 16
"""Sides are multiples of it, or the full one: networks halve their input several times."""


class Progressive:
    """Training batches whose images grow with the step; everything else is that of the batches themselves.

    A batch stays a pure function of the step. Images are reduced on the device after all other augmentation, by bilinear
    interpolation with antialiasing. Source: Howard 2018 (DAWNBench); Tan and Le 2021, arXiv:2104.00298.

    Args:
        batches: such as `OnDevice`, with `from_step` and `at`.
        first_px: side of the images at step 0.
        full_px: side from `full_step` on: the model's own.
        full_step: steps until then; in between the side grows linearly.
    """

    def __init__(self, batches: Any, *, first_px: int, full_px: int, full_step: int) -> None:
        self._batches = batches
        self.first_px, self.full_px, self.full_step = first_px, full_px, full_step

    def __getattr__(self, name: str) -> Any:
        if name == "_batches":  # while it is copied or unpickled
            raise AttributeError(name)
        return getattr(self._batches, name)

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        for _, batch in zip(range(len(self)), self.from_step(0), strict=False):
            yield batch

    def px_at(self, step: int) -> int:
        """Side of the images at a step."""
        if step >= self.full_step:
            return self.full_px
        px = self.first_px + (self.full_px - self.first_px) * step / self.full_step
        return min(self.full_px, max(MULTIPLE, round(px / MULTIPLE) * MULTIPLE))

    def from_step(self, step: int) -> Iterator[Batch]:
        """Batches from a step on, for ever. Closing it ends the threads that make them."""
        batches = self._batches.from_step(step)
        try:
            for at, batch in enumerate(batches, start=step):
                yield self._resized(batch, at)
        finally:
            batches.close()

    def at(self, step: int) -> Batch:
        """The batch of any step, made again."""
        return self._resized(self._batches.at(step), step)

    def _resized(self, batch: Batch, step: int) -> Batch:
        px = self.px_at(step)
        if batch.images.shape[-2:] == (px, px):
            return batch
        images = F.interpolate(batch.images, size=(px, px), mode="bilinear", antialias=True, align_corners=False)
        return replace(batch, images=images)
