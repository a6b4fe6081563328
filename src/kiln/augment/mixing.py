"""Mixing two images of a batch: mixup, cutmix, or either.

The partner of position p is p XOR 1: the order is random already, so who mixes with whom depends neither on ranks nor
on micro-batches. A sample whose partner is not in the batch stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kiln.augment.chunks import pieces_of
from kiln.augment.values import PerSample, as_levels, check_images, per_sample
from kiln.errors import UsageError
from kiln.random import Purpose, uniform

Params = NDArray[np.float64]
MAX_ALPHA = 100.0
Mixed = tuple[Tensor, Tensor, Tensor]
"""Images; partner, (B,) int64 rows; lambda, (B,) float32, the share of the sample itself."""


def partners(positions: NDArray[np.int64]) -> NDArray[np.int64]:
    """The row of the partner of each row, its own row when the partner is not there. `positions`: (B,)."""
    if len(positions) == 0:
        return np.zeros(0, np.int64)
    order = np.argsort(positions, kind="stable")
    wanted = positions ^ 1
    found = order[np.searchsorted(positions, wanted, sorter=order).clip(max=len(order) - 1)]
    return np.where(positions[found] == wanted, found, np.arange(len(positions)))


def mixup(images: Tensor, lam: PerSample, partner: NDArray[np.int64]) -> Mixed:
    """Blend each image with its partner: lam times itself, 1 - lam times the other.

    Source: Zhang et al. 2018, "mixup", arXiv:1710.09412, eq. 1; differs: lambda per sample, not per batch.

    Args:
        images: (B, C, H, W), uint8 or floating, normalised or not.
        lam: one for all or (B,), 0 to 1.
        partner: (B,) rows, as from `partners`.
    Returns: new images of the same dtype, partner, lambda (1 where a sample is its own partner).
    """
    check_images(images)
    there, alone = _on(partner, images)
    lam = torch.where(alone, 1.0, per_sample(lam, images, name="lam"))
    out = torch.empty_like(images)
    for rows in pieces_of(images):
        own, other = images[rows].to(torch.float32), images[there[rows]].to(torch.float32)
        out[rows] = as_levels(other.lerp(own, lam[rows].view(-1, 1, 1, 1)), images)  # exactly its own at lambda 1
    return out, there, lam


def cutmix(images: Tensor, boxes: Params, partner: NDArray[np.int64]) -> Mixed:
    """Put a rectangle of its partner into each image, at the same place.

    Source: Yun et al. 2019, "CutMix", arXiv:1905.04899; differs: a rectangle per sample, not per batch.

    Args:
        images: (B, C, H, W), any dtype.
        boxes: (B, 4) top, left, height, width as shares of the image, on the host; cut to the image.
        partner: (B,) rows, as from `partners`.
    Returns: new images, partner, lambda: the share of pixels that each image kept.
    """
    check_images(images)
    out = images.clone()
    kept = _paste_(out, images, boxes, partner)
    return out, _on(partner, images)[0], kept


def mix_targets(soft_targets: Tensor, partner: Tensor, lam: Tensor) -> Tensor:
    """Targets mixed like their images: lam times its own, 1 - lam times the partner's.

    Args:
        soft_targets: (B, ...) floating; class indices as one-hot rows.
        partner: (B,) rows.
        lam: (B,).
    Raises: UsageError: targets are integers.
    """
    if not soft_targets.is_floating_point():
        hint = "torch.nn.functional.one_hot(targets, num_classes).float()"
        raise UsageError("E107", f"targets are {soft_targets.dtype}", expected="floating rows to mix", hint=hint)
    share = lam.to(soft_targets).view(-1, *[1] * (soft_targets.ndim - 1))
    return soft_targets[partner].lerp(soft_targets, share)


def _on(partner: NDArray[np.int64], images: Tensor) -> tuple[Tensor, Tensor]:
    """Partners, and who is alone, where the images are."""
    rows = torch.from_numpy(np.ascontiguousarray(partner, np.int64))
    alone = rows == torch.arange(len(rows))
    return rows.to(images.device, non_blocking=True), alone.to(images.device, non_blocking=True)


def _paste_(out: Tensor, images: Tensor, boxes: Params, partner: NDArray[np.int64]) -> Tensor:
    """Rectangles of the partners' `images` into `out`. Returns: (B,) float32, the share that stayed."""
    height, width = images.shape[-2:]
    kept = np.ones(len(images), np.float32)
    for row, (top, left, tall, wide) in enumerate(boxes.tolist()):
        other = int(partner[row])
        y, y_end = (min(max(round(edge * height), 0), height) for edge in (top, top + tall))
        x, x_end = (min(max(round(edge * width), 0), width) for edge in (left, left + wide))
        if other != row and y_end > y and x_end > x:
            out[row, :, y:y_end, x:x_end] = images[other, :, y:y_end, x:x_end]
            kept[row] = 1.0 - (y_end - y) * (x_end - x) / (height * width)
    return torch.from_numpy(kept).to(images.device, non_blocking=True)


@dataclass(frozen=True)
class Mixing:
    """Mixup, cutmix, or one of the two for each sample.

    Attributes:
        mixup_alpha: lambda is from Beta(alpha, alpha); 0 for no mixup.
        cutmix_alpha: the same for the area of the rectangle; 0 for no cutmix.
        p: probability that a sample is mixed.
        p_cutmix: when both are on, the share of mixed samples that cutmix gets.
    """

    NUM_PARAMS: ClassVar[int] = 5

    mixup_alpha: float = 0.2
    cutmix_alpha: float = 0.0
    p: float = 1.0
    p_cutmix: float = 0.5

    def __post_init__(self) -> None:
        for name in ("mixup_alpha", "cutmix_alpha"):
            alpha = getattr(self, name)
            if not 0 <= alpha <= MAX_ALPHA:
                raise UsageError("E102", f"{name} = {alpha}", expected=f"0 (off) to {MAX_ALPHA}; 0.2 and 1 are usual")
        for name in ("p", "p_cutmix"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError("E102", f"{name} = {getattr(self, name)}", expected="a probability, 0 to 1")

    def draw(self, seed: int, epoch: int, keys: NDArray[np.uint64]) -> Params:
        """(B, 5): lambda of mixup, then the rectangle of cutmix. A pure function of (seed, epoch, sample)."""
        u = uniform(seed, Purpose.MIX, epoch=epoch, sample=keys, num_draws=self.NUM_PARAMS)
        share = self.p_cutmix if self.mixup_alpha > 0 and self.cutmix_alpha > 0 else float(self.cutmix_alpha > 0)
        mixed = (u[:, 0] < self.p) & (self.mixup_alpha + self.cutmix_alpha > 0)
        cut = mixed & (u[:, 1] < share)
        params = np.zeros((len(keys), self.NUM_PARAMS))
        params[:, 0] = 1.0
        if (mixed & ~cut).any():
            params[:, 0] = np.where(mixed & ~cut, beta_quantile(u[:, 2], self.mixup_alpha), 1.0)
        if cut.any():
            side = np.sqrt(1.0 - beta_quantile(u[:, 2], self.cutmix_alpha)) * cut
            params[:, 1:3] = u[:, 3:5] - side[:, None] / 2  # the middle is uniform, the rectangle is cut to the image
            params[:, 3:5] = side[:, None]
        return params

    def __call__(self, images: Tensor, params: Params, positions: NDArray[np.int64]) -> Mixed:
        """Mix (B, C, H, W) images by what was drawn for them. `positions`: (B,), their places in the epoch."""
        partner = partners(positions)
        out, there, lam = mixup(images, torch.from_numpy(params[:, 0]), partner)
        kept = _paste_(out, images, params[:, 1:], partner)
        return out, there, lam * kept  # a sample has one or the other


def beta_quantile(shares: Params, alpha: float) -> Params:
    """Numbers from Beta(alpha, alpha), from uniform ones: one each, so that no number of tries is needed.

    The density is summed up over t = x ** alpha from 0 to one half, where it has no pole, and mirrored.
    """
    t = np.linspace(0.0, 0.5**alpha, 4097)
    x = t ** (1.0 / alpha)
    density = (1.0 - x) ** (alpha - 1.0)
    total = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    lower = np.minimum(shares, 1.0 - shares)
    found = np.interp(lower, total * (0.5 / total[-1]), x)
    return np.where(shares < 0.5, found, 1.0 - found)
