"""Losses of overlap between predicted and true regions, as pure functions.

Logits are (B, K, ...), and whatever follows K are the positions (pixels) of a region; (B, K) has one position. By
default each image has its own overlap, so that a batch may be cut; with `per_batch` the positions of all images are one
region, and the loss is coupled.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from kiln.losses.contract import LossTerms
from kiln.losses.reduction import (
    along_classes,
    at_least_float32,
    check_same_shape,
    check_within_one,
    class_rows,
    counted_positions,
)

ACTIVATIONS = ("auto", "softmax", "sigmoid")


class _Counts(NamedTuple):
    """Soft counts of a class in a region, each (R, K): R is B, or 1 per batch."""

    hits: Tensor  # predicted and true
    false_alarms: Tensor  # predicted only
    misses: Tensor  # true only
    positions: Tensor | None  # (R,), how many count; None for all


def dice(
    logits: Tensor,
    targets: Tensor,
    *,
    smooth: float = 1.0,
    class_weights: Tensor | None = None,
    per_batch: bool = False,
    activation: str = "auto",
    skip_absent: bool = False,
    ignore_index: int | None = None,
) -> LossTerms:
    """1 - (2 |P and T| + smooth) / (|P| + |T| + smooth), averaged over the classes.

    Source: Milletari et al. 2016, arXiv:1606.04797, with |P| for |P|^2 as is usual.
    Nothing predicted where nothing is true is a loss of 0, also with `smooth = 0`.

    Args:
        logits: (B, K, ...).
        targets: (B, ...) integer class indices; or (B, K, ...) between 0 and 1; for K = 1 also (B, ...) of 0 and 1.
        smooth: added above and below; the larger, the gentler on small regions. With 0, a class that is nowhere true has
            no gradient.
        class_weights: (K,), >= 0: classes are averaged by them; 0 leaves one out, such as the background.
        per_batch: count over the whole batch.
        activation: softmax, sigmoid, or auto: sigmoid for K = 1, else softmax.
        skip_absent: average over the classes that are somewhere true; an image without any weighs 0.
        ignore_index: the class index of positions that do not count.
    Raises: UsageError: shapes that do not fit.
    """
    counts = _count(logits, targets, per_batch=per_batch, activation=activation, ignore_index=ignore_index)
    overlap = _ratio(2 * counts.hits + smooth, 2 * counts.hits + counts.false_alarms + counts.misses + smooth)
    return _over_classes(1 - overlap, counts, class_weights, skip_absent=skip_absent, num_samples=len(logits))


def tversky(
    logits: Tensor,
    targets: Tensor,
    *,
    alpha: float = 0.5,
    beta: float = 0.5,
    smooth: float = 1.0,
    class_weights: Tensor | None = None,
    per_batch: bool = False,
    activation: str = "auto",
    skip_absent: bool = False,
    ignore_index: int | None = None,
) -> LossTerms:
    """Overlap in which false alarms weigh `alpha` and misses `beta`: 1 - (hits + s) / (hits + a FP + b FN + s).

    Source: Salehi et al. 2017, arXiv:1706.05721, eq. 4. alpha = beta = 0.5 is `dice` with twice the smooth, alpha =
    beta = 1 `jaccard`. The other arguments as for `dice`.
    """
    counts = _count(logits, targets, per_batch=per_batch, activation=activation, ignore_index=ignore_index)
    whole = counts.hits + alpha * counts.false_alarms + beta * counts.misses + smooth
    losses = 1 - _ratio(counts.hits + smooth, whole)
    return _over_classes(losses, counts, class_weights, skip_absent=skip_absent, num_samples=len(logits))


def jaccard(
    logits: Tensor,
    targets: Tensor,
    *,
    smooth: float = 1.0,
    class_weights: Tensor | None = None,
    per_batch: bool = False,
    activation: str = "auto",
    skip_absent: bool = False,
    ignore_index: int | None = None,
) -> LossTerms:
    """1 - (intersection + smooth) / (union + smooth), averaged over the classes. Arguments as for `dice`.

    Source: Rahman and Wang 2016, doi:10.1007/978-3-319-50835-1_22, eq. 5.
    """
    counts = _count(logits, targets, per_batch=per_batch, activation=activation, ignore_index=ignore_index)
    overlap = _ratio(counts.hits + smooth, counts.hits + counts.false_alarms + counts.misses + smooth)
    return _over_classes(1 - overlap, counts, class_weights, skip_absent=skip_absent, num_samples=len(logits))


def generalized_dice(
    logits: Tensor,
    targets: Tensor,
    *,
    smooth: float = 1e-6,
    class_weights: Tensor | None = None,
    per_batch: bool = False,
    activation: str = "auto",
    ignore_index: int | None = None,
) -> LossTerms:
    """One Dice over all classes, each weighed by one over the square of its true size: small classes count as much.

    Source: Sudre et al. 2017, arXiv:1707.03237, section 2. Differs: a class that is nowhere true has no such weight, and
    takes the largest of the others, or 1 if there are none.

    Args:
        logits: (B, K, ...).
        targets: as for `dice`.
        smooth: as for `dice`, against the weighted sizes.
        class_weights: (K,), >= 0: a further factor for each class.
        per_batch: count over the whole batch.
        activation: as for `dice`.
        ignore_index: the class index of positions that do not count.
    """
    counts = _count(logits, targets, per_batch=per_batch, activation=activation, ignore_index=ignore_index)
    size = counts.hits + counts.misses
    size = size.detach()
    present = size > 0
    weights = torch.where(present, size.clamp_min(torch.finfo(size.dtype).eps) ** -2, 0.0)
    largest = weights.amax(1, keepdim=True)
    weights = torch.where(present, weights, torch.where(largest > 0, largest, 1.0))
    if class_weights is not None:
        weights = weights * along_classes(class_weights, weights)
    weights = weights / weights.amax(1, keepdim=True).clamp_min(
        torch.finfo(weights.dtype).tiny
    )  # only their proportions count, and `smooth` against them
    hits = (weights * counts.hits).sum(1)
    wrong = (weights * (counts.false_alarms + counts.misses)).sum(1)
    losses = 1 - _ratio(2 * hits + smooth, 2 * hits + wrong + smooth)
    return _per_sample(losses, None if counts.positions is None else counts.positions > 0, len(logits))


def _count(logits: Tensor, targets: Tensor, *, per_batch: bool, activation: str, ignore_index: int | None) -> _Counts:
    """Soft counts of each class, over the positions of each image or of the batch."""
    logits = at_least_float32(logits)
    single = logits.ndim >= 2 and logits.shape[1] == 1
    if activation == "auto":
        activation = "sigmoid" if single else "softmax"
    if single and targets.shape == logits.shape[:1] + logits.shape[2:]:
        targets = targets.unsqueeze(1)
    valid = None if ignore_index is None else counted_positions(targets, ignore_index)
    if activation == "sigmoid" and (single or targets.shape == logits.shape):
        check_same_shape(logits, targets)
        rows = targets.to(logits.dtype) if valid is None else torch.where(valid, targets, 0).to(logits.dtype)
        check_within_one(rows)
    else:
        rows = class_rows(logits, targets, ignore_index=ignore_index)
        valid = None if valid is None else valid.unsqueeze(1)
    p = torch.softmax(logits, 1) if activation == "softmax" else torch.sigmoid(logits)
    hits, false_alarms, misses = p * rows, p * (1 - rows), (1 - p) * rows
    if valid is not None:
        hits, false_alarms, misses = hits * valid, false_alarms * valid, misses * valid
    positions = None if valid is None else _sum_positions(valid.to(p.dtype), per_batch).amax(1)
    hits, false_alarms, misses = (_sum_positions(part, per_batch) for part in (hits, false_alarms, misses))
    return _Counts(hits, false_alarms, misses, positions)


def _sum_positions(values: Tensor, per_batch: bool) -> Tensor:
    """(B, K, ...) -> (B, K), or (1, K) over the whole batch."""
    values = values.flatten(2).sum(2) if values.ndim > 2 else values
    return values.sum(0, keepdim=True) if per_batch else values


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    """part / whole; 1 where both are 0: nothing predicted where nothing is true."""
    empty = whole == 0
    return torch.where(empty, 1.0, part / torch.where(empty, 1.0, whole))


def _over_classes(
    losses: Tensor, counts: _Counts, class_weights: Tensor | None, *, skip_absent: bool, num_samples: int
) -> LossTerms:
    """(R, K) -> the weighted mean over the classes, per sample."""
    weights = (
        torch.ones_like(losses) if class_weights is None else along_classes(class_weights, losses).expand_as(losses)
    )
    if skip_absent:
        weights = weights * (counts.hits + counts.misses > 0)
    total = weights.sum(1)
    values = (losses * weights).sum(1) / torch.where(total > 0, total, 1.0)
    counted = None if counts.positions is None else counts.positions > 0
    if skip_absent:
        counted = total > 0 if counted is None else counted & (total > 0)
    return _per_sample(values, counted, num_samples)


def _per_sample(values: Tensor, counts: Tensor | None, num_samples: int) -> LossTerms:
    """(R,) -> a value per sample; those of which nothing counts weigh 0."""
    weights = None if counts is None else counts.to(values.dtype).expand(num_samples)
    return LossTerms(values.expand(num_samples), weights)
