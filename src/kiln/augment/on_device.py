"""Training batches on their device: moved, augmented, normalised, mixed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kiln.augment.mixing import Mixing, mix_targets
from kiln.augment.policies import Nothing, Policy
from kiln.batch import Batch


@dataclass(frozen=True)
class Standardized:
    """A policy at whose end each image is standardised by itself.

    Args:
        policy: what comes before.
        standardize: normalised images -> images.
    """

    policy: Policy
    standardize: Callable[[Tensor], Tensor]

    def draw(self, seed: int, epoch: int, keys: NDArray[np.uint64]) -> NDArray[np.float64]:
        """What the policy draws."""
        return self.policy.draw(seed, epoch, keys)

    def __call__(
        self,
        images: Tensor,
        params: NDArray[np.float64],
        *,
        mean: Tensor | None = None,
        std: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """See `Policy`; uint8 levels, without `mean` and `std`, are left as they are."""
        made = self.policy(images, params, mean=mean, std=std, dtype=dtype)
        return made if mean is None else self.standardize(made)


class OnDevice:
    """Training batches on their device. Everything random in them was drawn on the host, so any batch can be made again.

    Args:
        batches: host batches, with `from_step` and `at`; `params` holds the policy's columns, then the mixing's.
        augment: uint8 images and params -> normalised images; None for images that come already transformed.
        device: where the model is.
        mean: (C,) that the augmentation takes off at its end.
        std: (C,) that it divides by.
        mixing: pairs of images, after everything else; needs `soften`.
        soften: targets -> floating rows that can be mixed.
        gather: places (B, P) on the device -> images, where the training set lives there.
    """

    def __init__(
        self,
        batches: Any,
        augment: Policy | None,
        *,
        device: torch.device,
        mean: Tensor | None = None,
        std: Tensor | None = None,
        mixing: Mixing | None = None,
        soften: Callable[[Tensor], Tensor] | None = None,
        gather: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.batches, self.augment, self.device = batches, augment, device
        self.mean, self.std = (None if values is None else values.to(device) for values in (mean, std))
        self.mixing, self.soften, self.gather = mixing, soften, gather

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        return map(self.prepare, self.batches)

    def from_step(self, step: int) -> Iterator[Batch]:
        """Batches from a step on, for ever. Closing it ends the threads that make them."""
        batches = self.batches.from_step(step)
        try:
            yield from map(self.prepare, batches)
        finally:
            if hasattr(batches, "close"):
                batches.close()

    def at(self, step: int) -> Batch:
        """The batch of any step, made again."""
        return self.prepare(self.batches.at(step))

    def prepare(self, batch: Batch) -> Batch:
        """A host batch as the model takes it."""
        if self.device.type == "cuda":
            batch = replace(batch, images=batch.images.pin_memory(), targets=batch.targets.pin_memory())
        batch = batch.to(self.device)
        if self.gather is not None and batch.images.dim() == 2:  # not the black row of a process that has none
            batch = replace(batch, images=self.gather(batch.images))
        if self.augment is None or batch.images.is_floating_point():
            return batch
        if batch.params is None:  # the row of a process that has none of its own
            return replace(batch, images=self._plain(batch.images), targets=self._soft(batch.targets))
        num_mixing = 0 if self.mixing is None else Mixing.NUM_PARAMS
        params = batch.params[:, : batch.params.shape[1] - num_mixing]
        images, targets = self.augment(batch.images, params, mean=self.mean, std=self.std), batch.targets
        if batch.mask is not None:
            images = images * batch.mask[:, None]
        if self.mixing is not None and batch.positions is not None:
            images, partner, lam = self.mixing(images, batch.params[:, -num_mixing:], batch.positions)
            targets = mix_targets(self._soft(targets), partner, lam)
        return replace(batch, images=images, targets=targets)

    def _plain(self, images: Tensor) -> Tensor:
        return Nothing()(images, np.zeros((len(images), 0)), mean=self.mean, std=self.std)

    def _soft(self, targets: Tensor) -> Tensor:
        return targets if self.mixing is None or self.soften is None else self.soften(targets)
