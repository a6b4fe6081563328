"""Blur and sharpness: every pixel from its neighbours."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kiln.augment.values import PerSample, as_levels, ceiling, check_images, per_pixel, per_sample
from kiln.errors import UsageError


def gaussian_blur(images: Tensor, sigma: PerSample, *, kernel_size: int) -> Tensor:
    """Blur each image with its own Gaussian; the border is reflected.

    The kernel is torchvision's: sampled over `kernel_size / sqrt(2)` pixels and normalised, applied along rows and
    then along columns. Shifted multiply-adds instead of a grouped convolution: faster here, and a row of the batch is
    the same bits in any company.

    Args:
        images: (B, C, H, W), uint8 or floating.
        sigma: standard deviation, one for all or (B,), > 0 in units of that sampling.
        kernel_size: odd, below twice the shorter side.
    Returns: a new tensor of the same shape and dtype.
    Raises: UsageError: an even or too large kernel.
    """
    check_images(images)
    if kernel_size < 1 or kernel_size % 2 == 0 or kernel_size // 2 >= min(images.shape[-2:]):
        expected = f"odd, below {2 * min(images.shape[-2:])} for images of this size"
        raise UsageError("E102", f"kernel_size = {kernel_size}", expected=expected)
    limit = (kernel_size - 1) / (2.0 * 2.0**0.5)
    x = torch.linspace(-limit, limit, kernel_size, device=images.device)
    exponents = -((x / per_sample(sigma, images, name="sigma").view(-1, 1)) ** 2)
    kernel = exponents.softmax(1).T.reshape(kernel_size, -1, 1, 1, 1)  # (kernel_size, B, 1, 1, 1)
    pad = kernel_size // 2
    pixels = F.pad(images.to(torch.float32), (pad, pad, pad, pad), mode="reflect")
    for dim in (-1, -2):
        length = images.shape[dim]
        blurred = pixels.narrow(dim, 0, length) * kernel[0]
        for offset in range(1, kernel_size):
            blurred.addcmul_(pixels.narrow(dim, offset, length), kernel[offset])
        pixels = blurred
    return as_levels(pixels, images)


def adjust_sharpness(images: Tensor, factor: PerSample) -> Tensor:
    """Towards a smoothed image (0) or away from it (above 1); one pixel at each border stays.

    The smoothed image is Pillow's and torchvision's: the mean of 3x3 pixels in which the middle counts five times.

    Args:
        images: (B, 1 or 3, H, W), uint8 or floating.
        factor: one for all or (B,), >= 0.
    Returns: a new tensor of the same shape and dtype.
    """
    check_images(images, channels=(1, 3))
    height, width = images.shape[-2:]
    if height <= 2 or width <= 2:
        return images.clone()
    pixels = images.to(torch.float32, copy=True)
    rows = pixels[..., :-2, :] + pixels[..., 1:-1, :]
    rows += pixels[..., 2:, :]
    smooth = rows[..., :-2] + rows[..., 1:-1]
    smooth += rows[..., 2:]
    middle = pixels[..., 1:-1, 1:-1]
    smooth.add_(middle, alpha=4.0).mul_(1.0 / 13.0)
    if images.dtype == torch.uint8:
        smooth.round_()
    strength = 1.0 - per_pixel(factor, images, name="factor")
    middle.addcmul_(smooth.sub_(middle), strength)
    return as_levels(pixels.clamp_(0, ceiling(images)), images)
