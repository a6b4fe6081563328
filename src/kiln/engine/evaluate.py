"""Exact evaluation: each sample once, no padding, the same numbers for any number of processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kiln.batch import Batch, as_batch
from kiln.engine.out_of_memory import ERRORS, empty_cache, is_out_of_memory
from kiln.engine.strategy import Single, Strategy
from kiln.engine.supervised import extra_inputs
from kiln.errors import ResourceError


@dataclass(frozen=True)
class Outputs:
    """What a model said of some samples.

    Attributes:
        logits: (N, K) float32.
        targets: (N, ...) as the batches had them.
        indices: (N,) samples of the source; 0, 1, 2 … where the batches do not say.
    """

    logits: NDArray[np.float32]
    targets: NDArray[Any]
    indices: NDArray[np.int64]


@torch.inference_mode()
def collect_outputs(
    forward: Callable[..., Tensor],
    batches: Iterable[Any],
    *,
    device: torch.device,
    strategy: Strategy | None = None,
) -> Outputs | None:
    """Run a model over batches and gather all it said, ordered by sample.

    Args:
        forward: images on the device -> logits (B, K); in eval mode. Padded ones come with their `mask`.
        batches: this process's share.
        device: where to compute.
        strategy: gathers the shares; every process gets everything.
    Returns: None when there was no batch on any process.
    Raises: ResourceError (E402): out of memory with one sample; a batch that is too large goes in halves.
    """
    parts: list[tuple[NDArray[Any], NDArray[Any], NDArray[np.int64]]] = []
    num_seen = 0
    for item in batches:
        batch: Batch = as_batch(item)
        there = batch.to(device)
        logits = _in_pieces(forward, there).cpu().numpy()
        indices = np.arange(num_seen, num_seen + len(batch)) if batch.indices is None else batch.indices
        parts.append((logits, batch.targets.cpu().numpy(), indices))
        num_seen += len(batch)
    shares = (strategy or Single()).gather(parts)
    parts = [part for share in shares for part in share]
    if not parts:
        return None
    logits, targets, indices = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.argsort(indices, kind="stable")
    return Outputs(logits[order], targets[order], indices[order])


def _in_pieces(forward: Callable[..., Tensor], batch: Batch) -> Tensor:
    """Logits in float32; in two halves where memory does not suffice for the whole."""
    try:
        return forward(batch.images, **extra_inputs(batch)).float()
    except ERRORS as error:
        if not is_out_of_memory(error):
            raise
        if len(batch) == 1:
            hint = "a smaller --img-size or --model"
            raise ResourceError("E402", "out of memory with one sample at a time, in evaluation", hint=hint) from error
    empty_cache()  # here, where the error no longer holds what the forward pass had made
    return torch.cat([_in_pieces(forward, half) for half in batch.split((len(batch) + 1) // 2)])
