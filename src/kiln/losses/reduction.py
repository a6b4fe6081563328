"""What every loss does around its formula: raise half precision, check shapes, average over each sample."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kiln.errors import UsageError
from kiln.losses.contract import LossTerms


def at_least_float32(values: Tensor) -> Tensor:
    """Half precision becomes float32; float32 and float64 stay what they are."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values


def mean_per_sample(values: Tensor) -> Tensor:
    """(B, ...) -> (B,)."""
    return values.flatten(1).mean(1) if values.ndim > 1 else values


def weighted_per_sample(weighted: Tensor, weights: Tensor) -> LossTerms:
    """Average what each sample has at its positions; a sample weighs the mean of what its positions weigh.

    So the weighted mean over samples is the weighted mean over all positions of all samples.

    Args:
        weighted: (B, ...), values that are already multiplied by their weights.
        weights: the same shape, >= 0.
    """
    weights = mean_per_sample(weights)
    return LossTerms(mean_per_sample(weighted) / torch.where(weights > 0, weights, 1.0), weights)


def check_same_shape(outputs: Tensor, targets: Tensor) -> None:
    """Nothing is broadcast, because (B, 1) against (B,) would compare every pair.

    Raises: UsageError: the shapes differ.
    """
    if outputs.shape != targets.shape:
        raise UsageError(
            "E107",
            f"outputs have shape {tuple(outputs.shape)}, targets {tuple(targets.shape)}",
            expected="the same shape for both",
            hint="reshape one of them, as in outputs.squeeze(1) or targets[:, None]",
        )


def check_within_one(targets: Tensor) -> None:
    """Only on the CPU: an accelerator would have to be waited for.

    Raises: UsageError: targets below 0 or above 1.
    """
    if targets.device.type == "cpu" and targets.numel() and targets.dtype != torch.bool:
        low, high = (float(end) for end in targets.aminmax())
        if low < 0 or high > 1:
            raise UsageError(
                "E107",
                f"targets lie between {low:g} and {high:g}",
                expected="yes or no: 0 to 1",
                hint="targets / 255 for masks that are images" if high == 255 else "",
            )


def class_targets(logits: Tensor, targets: Tensor) -> Tensor:
    """Targets as softmax losses take them: indices as int64, rows as floating as the logits.

    Args:
        logits: (B, K, ...).
        targets: (B, ...) integers, or (B, K, ...) floating.
    Raises: UsageError: any other shape.
    """
    soft = targets.is_floating_point()
    wanted = logits.shape if soft else logits.shape[:1] + logits.shape[2:]
    if logits.ndim < 2 or targets.shape != wanted:
        raise UsageError(
            "E107",
            f"logits have shape {tuple(logits.shape)}, {'floating' if soft else 'integer'} targets {tuple(targets.shape)}",
            expected="logits (B, K, ...) and targets (B, ...) of integers, or (B, K, ...) of floating shares",
        )
    return targets.to(logits.dtype) if soft else targets.long()


def check_classes(targets: Tensor, num_classes: int) -> None:
    """Only on the CPU: an accelerator fails by itself, later.

    Raises: UsageError: an index that is no class.
    """
    if targets.device.type != "cpu" or not targets.numel():
        return
    low, high = (int(end) for end in targets.aminmax())
    if low < 0 or high >= num_classes:
        wrong = low if low < 0 else high
        raise UsageError(
            "E107",
            f"a target is class {wrong}, and there are {num_classes} classes",
            expected=f"0 to {num_classes - 1}",
            hint=f"ignore_index={wrong} leaves such positions out" if wrong in (-100, -1, 255) else "",
        )


def class_rows(logits: Tensor, targets: Tensor, *, smoothing: float = 0.0, ignore_index: int | None = None) -> Tensor:
    """Targets as rows over the classes: (B, K, ...), floating; positions to ignore have rows of zeros.

    Raises: UsageError: shapes that do not fit, or `ignore_index` for targets that are rows.
    """
    targets = class_targets(logits, targets)
    valid = None if ignore_index is None else counted_positions(targets, ignore_index)
    if targets.is_floating_point():
        rows = targets
    else:
        indices = targets if valid is None else torch.where(valid, targets, 0)
        check_classes(indices, logits.shape[1])
        rows = F.one_hot(indices, logits.shape[1]).movedim(-1, 1).to(logits.dtype)
    if smoothing:
        rows = rows * (1.0 - smoothing) + smoothing / logits.shape[1]
    return rows if valid is None else rows * valid.unsqueeze(1)


def counted_positions(targets: Tensor, ignore_index: int) -> Tensor:
    """Where integer targets are to be counted, as booleans of their shape.

    Raises: UsageError: targets that are rows of shares, which have no index to ignore.
    """
    if targets.is_floating_point():
        raise UsageError(
            "E103",
            f"ignore_index = {ignore_index} with targets that are shares of classes",
            expected="integer targets, or no ignore_index",
            hint="mixed targets (mixup, cutmix) are shares: leave mixing out",
        )
    return targets != ignore_index


def weights_of_rows(rows: Tensor, class_weights: Tensor | None) -> Tensor:
    """(B, ...) what each position weighs: the mean of the class weights under its row; 1 where none are given.

    No matrix product, which autocast would compute in half precision.
    """
    if class_weights is None:
        return rows.sum(1)
    return (rows * along_classes(class_weights, rows)).sum(1)


def along_classes(class_weights: Tensor, like: Tensor) -> Tensor:
    """(K,) as (1, K, 1, ...), to multiply with `like`, (B, K, ...).

    Raises: UsageError: not one weight for each class.
    """
    if class_weights.shape != like.shape[1:2]:
        raise UsageError(
            "E103", f"{len(class_weights)} class weights for {like.shape[1]} classes", expected="one for each class"
        )
    return class_weights.to(like.dtype).view(1, -1, *[1] * (like.ndim - 2))
