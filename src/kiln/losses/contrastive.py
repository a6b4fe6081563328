"""Losses of embeddings, which compare the samples of a batch with each other: all are coupled."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kiln.errors import UsageError
from kiln.losses.contract import LossTerms
from kiln.losses.reduction import at_least_float32


def supervised_contrastive(embeddings: Tensor, targets: Tensor, *, temperature: float = 0.1) -> LossTerms:
    """Draw samples of one class together and push all others away.

    For an anchor i: the mean over positives p of -log(exp(z_i z_p / t) / sum over all a != i of exp(z_i z_a / t)).
    Source: Khosla et al. 2020, arXiv:2004.11362, eq. 2 (L_out), with one view of each image.

    Args:
        embeddings: (B, D), of any length; brought to length 1 here.
        targets: (B,) integer class indices.
        temperature: > 0; the smaller, the more the nearest count.
    Returns: a value per anchor; an anchor that is alone of its class in the batch weighs 0.
    Raises: UsageError: other shapes, or soft targets, which say of no pair that it is of one class.
    """
    if embeddings.ndim != 2 or targets.shape != embeddings.shape[:1] or targets.is_floating_point():
        raise UsageError(
            "E107",
            f"embeddings have shape {tuple(embeddings.shape)}, targets {tuple(targets.shape)} of {targets.dtype}",
            expected="embeddings (B, D) and targets (B,) of integers",
            hint="mixed targets (mixup, cutmix) belong to no class: leave mixing out",
        )
    with torch.autocast(embeddings.device.type, enabled=False):  # or the products would be in half precision
        unit = F.normalize(at_least_float32(embeddings), dim=1)
        similar = unit @ unit.T / temperature
    itself = torch.eye(len(targets), dtype=torch.bool, device=targets.device)
    log_p = similar - torch.logsumexp(similar.masked_fill(itself, -torch.inf), 1, keepdim=True)
    positives = (targets[:, None] == targets[None, :]) & ~itself
    count = positives.sum(1)
    values = -torch.where(positives, log_p, 0.0).sum(1) / count.clamp_min(1)
    return LossTerms(values, (count > 0).to(values.dtype))
