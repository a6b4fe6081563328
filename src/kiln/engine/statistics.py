"""Running statistics of normalisation, measured again for weights that were never trained with: averages of weights."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from typing import Any

import torch
from torch import nn

from kiln.batch import as_batch
from kiln.engine.supervised import extra_inputs
from kiln.models.blocks import running_norms

BATCHES = 100
"""Batches that statistics are measured over; of a shorter epoch, all."""


@torch.no_grad()
def renew_statistics(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    like: nn.Module | None = None,
    num_batches: int = BATCHES,
    context: AbstractContextManager[Any] | None = None,
) -> int:
    """Give normalisation layers the mean statistics of some batches; everything else stays as it is.

    The result is that of `torch.optim.swa_utils.update_bn`, but dropout stays off, and frozen layers are left alone.

    Args:
        model: in evaluation mode, and left in it.
        batches: on the model's device; the first `num_batches` of them are taken.
        like: the model in training that this is an average of; layers that are frozen there keep their statistics.
        num_batches: to measure over.
        context: to compute in, such as autocast.
    Returns: how many batches were taken; 0 where no layer has statistics to renew.
    """
    norms = [model.get_submodule(name) for name in _training_norms(model if like is None else like)]
    if not norms:
        return 0
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()  # type: ignore[operator]
        norm.momentum = None  # type: ignore[assignment] - the plain mean over batches
        nn.Module.train(norm)
    taken = 0
    try:
        with context or nullcontext():
            for batch in islice(batches, num_batches):
                batch = as_batch(batch)
                model(batch.images, **extra_inputs(batch))
                taken += 1
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            nn.Module.train(norm, False)
    return taken


def _training_norms(model: nn.Module) -> list[str]:
    """Names of the layers with running statistics that follow `train()`, as frozen ones do not."""
    found = []
    for name in running_norms(model):
        norm = model.get_submodule(name)
        before = norm.training
        if norm.train().training:
            found.append(name)
        nn.Module.train(norm, before)
    return found
