"""Tone: every pixel by its own value, and by what its channel holds."""

from __future__ import annotations

import torch
from torch import Tensor

from kiln.augment.values import PerSample, as_levels, ceiling, check_images, per_pixel


def invert(images: Tensor) -> Tensor:
    """Black becomes white."""
    check_images(images)
    return images.bitwise_not() if images.dtype == torch.uint8 else 1.0 - images


def posterize(images: Tensor, bits: PerSample) -> Tensor:
    """Keep the highest bits of each value, 0 to 8; one number for all or (B,)."""
    check_images(images)
    kept = per_pixel(bits, images, name="bits").clamp(0, 8)
    if images.dtype == torch.uint8:
        mask = 256 - torch.exp2(8 - kept)
        return images & mask.to(torch.uint8)
    levels = torch.exp2(kept)
    return ((images.float() * levels).floor_().clamp_(min=0).minimum(levels - 1) / levels).to(images.dtype)


def solarize(images: Tensor, threshold: PerSample) -> Tensor:
    """Invert the values from a threshold on: in 0..255 for uint8, in 0..1 for floats; one for all or (B,)."""
    check_images(images)
    limit = per_pixel(threshold, images, name="threshold")
    if images.dtype == torch.uint8:
        # Comparing and choosing bytes costs 200 times an addition here (neither is vectorised), so: the excess over the
        # last level that stays, as 0 or 1, becomes 0 or 255, and exclusive-or with 255 inverts.
        stays = (limit.ceil() - 1).clamp(0, 255).to(torch.uint8)
        reached = torch.maximum(images, stays).sub_(stays).clamp_(max=1)
        reached.bitwise_or_((limit <= 0).to(torch.uint8))
        return reached.neg_().bitwise_xor_(images)
    return torch.where(images >= limit, 1.0 - images, images)


def autocontrast(images: Tensor) -> Tensor:
    """Stretch each channel over the whole range; a constant channel stays."""
    check_images(images)
    top = ceiling(images)
    low, high = images.amin((-2, -1), keepdim=True).float(), images.amax((-2, -1), keepdim=True).float()
    flat = high == low
    scale = torch.where(flat, 1.0, (high - low) * (1.0 / top))
    values = (images.float() - torch.where(flat, 0.0, low)).div_(scale).clamp_(0, top)
    # like torchvision: bytes are cut off, not rounded
    return as_levels(values.floor_() if images.dtype == torch.uint8 else values, images)


def equalize(images: Tensor) -> Tensor:
    """Spread the values of each channel evenly, by Pillow's rule; floats take part as 256 levels.

    A channel in which all but its brightest value come fewer than 255 times stays.
    """
    check_images(images)
    is_levels = images.dtype == torch.uint8
    levels = images if is_levels else images.float().mul(256.0 - 1e-3).clamp_(0, 255).to(torch.uint8)
    index = levels.flatten(2).to(torch.int64)  # (B, C, H * W)
    num = index.shape[-1]
    counts = torch.zeros(*index.shape[:2], 256, dtype=torch.int32, device=images.device)
    counts.scatter_add_(-1, index, counts.new_ones(1).expand_as(index))
    below = counts.cumsum(-1, dtype=torch.int32)
    brightest = levels.amax((-2, -1)).to(torch.int64).unsqueeze(-1)
    step = (num - counts.gather(-1, brightest)).div_(255, rounding_mode="floor")
    divisor = step.clamp(min=1)
    table = (below - counts + divisor // 2).div_(divisor, rounding_mode="floor").clamp_(0, 255)
    identity = torch.arange(256, device=images.device, dtype=torch.int32)
    table = torch.where(step > 0, table, identity).to(torch.uint8)
    equal = table.gather(-1, index).view_as(levels)
    return equal if is_levels else (equal.float() / 255).to(images.dtype)
