"""Losses over classes and labels, as pure functions: tensors in, one value and one weight per sample out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kiln.losses.contract import LossTerms
from kiln.losses.reduction import (
    along_classes,
    at_least_float32,
    check_classes,
    check_same_shape,
    check_within_one,
    class_rows,
    class_targets,
    counted_positions,
    mean_per_sample,
    weighted_per_sample,
    weights_of_rows,
)

_NO_CLASS = -(2**62)
"""No index is passed over unless it was asked for; torch's own default lets -100 through, as a value of 0."""


def cross_entropy(
    logits: Tensor,
    targets: Tensor,
    *,
    smoothing: float = 0.0,
    class_weights: Tensor | None = None,
    ignore_index: int | None = None,
) -> LossTerms:
    """Softmax cross entropy.

    With class weights, a sample weighs what its class weighs. For integer targets the weighted mean is then that of
    `torch.nn.functional.cross_entropy(reduction="mean")`. Differs for soft targets: a sample weighs the mean of the
    class weights under its target, so that a class index and its one-hot row give the same (torch divides by B there).

    Args:
        logits: (B, K), or (B, K, ...) for a class at each position.
        targets: (B, ...) integer class indices, or floating (B, K, ...), which sums to 1 over the classes.
        smoothing: the share of each target that is spread evenly over all classes, 0 <= smoothing < 1.
        class_weights: (K,), >= 0.
        ignore_index: the class index of positions that do not count.
    Raises: UsageError: shapes that do not fit.
    """
    logits = at_least_float32(logits)
    targets = class_targets(logits, targets)
    if class_weights is None and ignore_index is None:
        options: dict[str, Any] = {"reduction": "none", "label_smoothing": smoothing, "ignore_index": _NO_CLASS}
        try:
            return LossTerms(mean_per_sample(F.cross_entropy(logits, targets, **options)))
        except IndexError:
            check_classes(targets, logits.shape[1])
            raise
    if class_weights is not None:
        class_weights = class_weights.to(logits.dtype)
    weights = weights_of_rows(class_rows(logits, targets, ignore_index=ignore_index), class_weights)
    if ignore_index is not None:
        targets = torch.where(counted_positions(targets, ignore_index), targets, -100)
    weighted = F.cross_entropy(logits, targets, weight=class_weights, reduction="none", label_smoothing=smoothing)
    return weighted_per_sample(weighted, weights)


def binary_cross_entropy(
    logits: Tensor, targets: Tensor, *, smoothing: float = 0.0, pos_weight: Tensor | None = None
) -> LossTerms:
    """Sigmoid cross entropy of yes-or-no questions, averaged over all that a sample has.

    Args:
        logits: (B, K), or (B, K, ...).
        targets: the same shape, any dtype, between 0 and 1.
        smoothing: how far targets move towards one half: 1 becomes 1 - smoothing / 2, 0 becomes smoothing / 2.
        pos_weight: (K,) or (1,), the factor on the positive side of each question.
    Raises: UsageError: the shapes differ.
    """
    logits, targets = _questions(logits, targets, smoothing)
    if pos_weight is not None:
        pos_weight = along_classes(pos_weight.expand(logits.shape[1]) if len(pos_weight) == 1 else pos_weight, logits)
    values = F.binary_cross_entropy_with_logits(logits, targets, pos_weight=pos_weight, reduction="none")
    return LossTerms(mean_per_sample(values))


def focal(
    logits: Tensor,
    targets: Tensor,
    *,
    gamma: float = 2.0,
    class_weights: Tensor | None = None,
    ignore_index: int | None = None,
) -> LossTerms:
    """Cross entropy in which what is already right counts less: sum over k of t_k (1 - p_k)^gamma (-log p_k).

    Source: Lin et al. 2017, arXiv:1708.02002, eq. 4, with softmax for sigmoid; for one class per sample t is one-hot.
    Class weights (the paper's alpha) weigh samples, as in `cross_entropy`. `gamma = 0` is cross entropy.

    Args:
        logits: (B, K, ...).
        targets: as for `cross_entropy`.
        gamma: how strongly easy samples are turned down, >= 0.
        class_weights: (K,), >= 0.
        ignore_index: the class index of positions that do not count.
    """
    logits = at_least_float32(logits)
    rows = class_rows(logits, targets, ignore_index=ignore_index)
    log_p = F.log_softmax(logits, 1)
    values = rows * _one_minus_exp(log_p).pow(gamma) * -log_p
    if class_weights is None and ignore_index is None:
        return LossTerms(mean_per_sample(values.sum(1)))
    weights = weights_of_rows(rows, class_weights)
    if class_weights is not None:
        values = values * along_classes(class_weights, values)
    return weighted_per_sample(values.sum(1), weights)


def binary_focal(
    logits: Tensor, targets: Tensor, *, gamma: float = 2.0, alpha: float | None = 0.25, smoothing: float = 0.0
) -> LossTerms:
    """Focal loss of yes-or-no questions, averaged over all that a sample has.

    Source: Lin et al. 2017, arXiv:1708.02002, eq. 5. Equals `torchvision.ops.sigmoid_focal_loss`, but for logits so
    large that a probability rounds to 1, where this keeps its gradient.

    Args:
        logits: (B, K), or (B, K, ...).
        targets: the same shape, 0 to 1.
        gamma: how strongly easy questions are turned down, >= 0.
        alpha: weight of the positive side, 1 - alpha of the negative; None weighs both 1.
        smoothing: as for `binary_cross_entropy`.
    """
    logits, targets = _questions(logits, targets, smoothing)
    values = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    # log of 1 - p_t: exact for targets of 0 and 1 at any logit, torchvision's formula between them
    p = torch.sigmoid(logits)
    missed = torch.where(
        targets == 1, torch.sigmoid(-logits), torch.where(targets == 0, p, p + targets - 2 * p * targets)
    )
    values = values * missed.clamp_min(torch.finfo(p.dtype).tiny).pow(gamma)
    if alpha is not None:
        values = values * (alpha * targets + (1.0 - alpha) * (1.0 - targets))
    return LossTerms(mean_per_sample(values))


def asymmetric(
    logits: Tensor,
    targets: Tensor,
    *,
    gamma_pos: float = 1.0,
    gamma_neg: float = 4.0,
    margin: float = 0.05,
    smoothing: float = 0.0,
) -> LossTerms:
    """Focal loss of labels that turns the many absent ones down more than the few present, averaged over the labels.

    Source: Ridnik et al. 2021, arXiv:2009.14119, eq. 7. For targets of 0 and 1 it is timm's AsymmetricLossMultiLabel,
    which sums over labels; differs where a probability is below 1e-8: timm's clamp has no gradient there.

    Args:
        logits: (B, K), or (B, K, ...).
        targets: the same shape, 0 to 1.
        gamma_pos: focusing of present labels.
        gamma_neg: focusing of absent labels.
        margin: an absent label predicted below this probability costs nothing; the paper's m, timm's clip.
        smoothing: as for `binary_cross_entropy`.
    """
    logits, targets = _questions(logits, targets, smoothing)
    positive = -F.logsigmoid(logits) * torch.exp(gamma_pos * F.logsigmoid(-logits))
    p = torch.sigmoid(logits)
    if margin:
        shifted = (p - margin).clamp_min(0.0)
        negative = -torch.log1p(-shifted) * shifted.clamp_min(torch.finfo(p.dtype).tiny).pow(gamma_neg)
    else:
        negative = -F.logsigmoid(-logits) * torch.exp(gamma_neg * F.logsigmoid(logits))
    return LossTerms(mean_per_sample(targets * positive + (1.0 - targets) * negative))


def asymmetric_softmax(
    logits: Tensor, targets: Tensor, *, gamma_pos: float = 1.0, gamma_neg: float = 4.0, smoothing: float = 0.1
) -> LossTerms:
    """Asymmetric focusing for one class per sample: the smoothed classes are turned down more than the right one.

    Source: Ridnik et al. 2021, arXiv:2009.14119; timm's AsymmetricLossSingleLabel, whose `eps` is `smoothing`.
    With `smoothing = 0` only the right class has a term, and `gamma_neg` no effect.

    Args:
        logits: (B, K, ...).
        targets: as for `cross_entropy`.
        gamma_pos: focusing of the right class.
        gamma_neg: focusing of the others.
        smoothing: as for `cross_entropy`.
    """
    logits = at_least_float32(logits)
    rows = class_rows(logits, targets)
    log_p = F.log_softmax(logits, 1)
    focus = rows * _one_minus_exp(log_p).pow(gamma_pos) + (1.0 - rows) * torch.exp(gamma_neg * log_p)
    smooth = rows * (1.0 - smoothing) + smoothing / logits.shape[1]
    return LossTerms(mean_per_sample((smooth * focus * -log_p).sum(1)))


def poly1(
    logits: Tensor,
    targets: Tensor,
    *,
    epsilon: float = 1.0,
    smoothing: float = 0.0,
    class_weights: Tensor | None = None,
    ignore_index: int | None = None,
) -> LossTerms:
    """Cross entropy with the first term of its expansion turned up: CE + epsilon (1 - p_t).

    Source: Leng et al. 2022, arXiv:2204.12511, eq. 5.

    Args:
        logits: (B, K, ...).
        targets: as for `cross_entropy`.
        epsilon: weight of the first term; 0 is cross entropy.
        smoothing: as for `cross_entropy`; of both parts.
        class_weights: (K,), >= 0; as for `cross_entropy`, of the smoothed rows of both parts.
        ignore_index: the class index of positions that do not count.
    """
    logits = at_least_float32(logits)
    hard = class_rows(logits, targets, ignore_index=ignore_index)
    rows = class_rows(logits, targets, ignore_index=ignore_index, smoothing=smoothing)
    log_p = F.log_softmax(logits, 1)
    values = rows * (-log_p + epsilon * _one_minus_exp(log_p))
    if class_weights is None and ignore_index is None:
        return LossTerms(mean_per_sample(values.sum(1)))
    if class_weights is not None:
        values = values * along_classes(class_weights, values)
    return weighted_per_sample(values.sum(1), weights_of_rows(hard, class_weights))


def _questions(logits: Tensor, targets: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    check_same_shape(logits, targets)
    check_within_one(targets)
    logits = at_least_float32(logits)
    targets = targets.to(logits.dtype)
    return logits, targets * (1.0 - smoothing) + 0.5 * smoothing if smoothing else targets


def _one_minus_exp(log_p: Tensor) -> Tensor:
    """1 - p without cancellation; never 0, where a power below 1 has no finite gradient."""
    return (-torch.expm1(log_p)).clamp_min(torch.finfo(log_p.dtype).tiny)
