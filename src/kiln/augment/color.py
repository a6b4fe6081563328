"""Colour in float32. Steps that are affine in the pixel become one 3x4 matrix per image, and one clamp."""

from __future__ import annotations

import torch
from torch import Tensor

from kiln.augment.values import GREY, PerSample, as_levels, ceiling, check_images, per_pixel, per_sample


def color_steps(
    num: int,
    channels: int,
    *,
    brightness: PerSample = 1.0,
    contrast: PerSample = 1.0,
    saturation: PerSample = 1.0,
    grey: PerSample = 0.0,
) -> tuple[Tensor, Tensor]:
    """What of `color_matrix` does not need the image, on the host: the factors say it all.

    Returns: `linear` and `of_mean`, (B, C, C) float32, so that a pixel becomes linear @ pixel + of_mean @ mean_color.
    """
    b, c, s, g = (
        torch.as_tensor(x, dtype=torch.float32).cpu().view(-1, 1, 1).expand(num, 1, 1)
        for x in (brightness, contrast, saturation, grey)
    )
    weights = torch.tensor(GREY if channels == 3 else (1.0,))
    linear = torch.eye(channels).expand(num, -1, -1)
    to_grey = weights.expand(channels, channels)
    if channels == 3:
        # grey of grey is not grey: the weights sum to 0.9999. So both steps are written out as a product.
        once, twice = (1.0 - s) * (1.0 - g) + g * s, g * (1.0 - s)
        linear = linear * (s * (1.0 - g)) + to_grey * once + (to_grey @ to_grey) * twice
    of_mean = linear.sum(2, keepdim=True) * ((1.0 - c) * b) * weights
    return linear * (b * c), of_mean


def color_matrix(mean_color: Tensor, **factors: PerSample) -> Tensor:
    """Brightness, then contrast, then saturation, then grey, as one matrix for each image.

    A factor of 1 changes nothing, 0 gives black, the mean grey, or grey. Equals torchvision's functions one after the
    other where none of them clips.

    Args:
        mean_color: (B, C), the mean of each channel before, in the units of the pixels; C is 1 or 3. With one channel
            saturation and grey change nothing.
        factors: `brightness`, `contrast`, `saturation`, all >= 0, and `grey` (0 keeps the colours, 1 replaces them by
            grey): one for all or (B,).
    Returns: (B, C, C + 1) float32, the last column to be added.
    """
    linear, of_mean = (part.to(mean_color.device) for part in color_steps(*mean_color.shape, **factors))
    return torch.cat([linear, (of_mean * mean_color.to(torch.float32).unsqueeze(1)).sum(2, keepdim=True)], dim=2)


def apply_color(pixels: Tensor, matrix: Tensor, *, out: Tensor | None = None) -> Tensor:
    """`matrix` times each pixel, without clamp.

    One multiply-add over all planes for each column: as fast as a matrix product of this shape, and never TF32 or
    bfloat16. Each operation meets one broadcast number only, because torch vectorises no more.

    Args:
        pixels: (B, C, H, W) float32.
        matrix: (B, C, C + 1) float32.
        out: where to write; not `pixels`.
    Returns: (B, C, H, W) float32.
    """
    return multiply_colors(pixels, matrix[:, :, :-1, None, None], out=out).add_(matrix[:, :, -1:, None])


def multiply_colors(pixels: Tensor, linear: Tensor, *, out: Tensor | None = None) -> Tensor:
    """`linear` (B, C, C, 1, 1) times each pixel (B, C, H, W) float32."""
    result = torch.mul(pixels[:, :1], linear[:, :, 0], out=out)
    for channel in range(1, pixels.shape[1]):
        result.addcmul_(pixels[:, channel : channel + 1], linear[:, :, channel])
    return result


def jitter(images: Tensor, **factors: PerSample) -> Tensor:
    """Brightness, contrast, saturation and grey at once: see `color_matrix` for the names; one clamp at the end.

    Args:
        images: (B, 1 or 3, H, W), uint8 or floating.
        factors: brightness, contrast, saturation, grey.
    Returns: a new tensor of the same shape and dtype; uint8 is rounded, where torchvision cuts off.
    """
    check_images(images, channels=(1, 3))
    pixels = images.to(torch.float32)
    changed = apply_color(pixels, color_matrix(pixels.mean((-2, -1)), **factors))
    return as_levels(changed.clamp_(0, ceiling(images)), images)


def adjust_brightness(images: Tensor, factor: PerSample) -> Tensor:
    """Times a factor: 0 is black, 1 changes nothing."""
    check_images(images, channels=(1, 3))
    pixels = images.to(torch.float32) * per_pixel(factor, images, name="factor")
    return as_levels(pixels.clamp_(0, ceiling(images)), images)


def adjust_contrast(images: Tensor, factor: PerSample) -> Tensor:
    """Towards the mean grey of the image (0) or away from it (above 1)."""
    return jitter(images, contrast=factor)


def adjust_saturation(images: Tensor, factor: PerSample) -> Tensor:
    """Towards grey (0) or away from it (above 1). Images of one channel stay."""
    return jitter(images, saturation=factor)


def to_grey(images: Tensor, mask: Tensor) -> Tensor:
    """Replace the colours of the images that `mask` (B,) names by grey; the number of channels stays."""
    return jitter(images, grey=mask.to(torch.float32))


def adjust_gamma(images: Tensor, gamma: PerSample) -> Tensor:
    """Raise to a power: above 1 darkens, below 1 brightens; black and white stay."""
    check_images(images, channels=(1, 3))
    top = ceiling(images)
    pixels = (images.to(torch.float32) / top).pow_(per_pixel(gamma, images, name="gamma"))
    return as_levels(pixels.mul_(top), images)


def adjust_hue(images: Tensor, turn: PerSample) -> Tensor:
    """Turn the hue, by a share of the circle: 0.5 is the complement, 1 is 0. Images of one channel stay.

    Hue is turned where it is made of corners: with m the darkest and r the range of the three channels, channel n is
    m + r * clamp(|(6h + k_n) mod 6 - 3| - 1, 0, 1), so nothing is sorted into six cases on the way back.

    Args:
        images: (B, 1 or 3, H, W), uint8 or floating.
        turn: one for all or (B,).
    Returns: a new tensor of the same shape and dtype.
    """
    check_images(images, channels=(1, 3))
    if images.shape[1] == 1:
        return images.clone()
    pixels = images.to(torch.float32)
    low, high = torch.aminmax(pixels, dim=1)
    span = high - low
    safe = torch.where(span > 0, span, 1.0)
    red, green, blue = pixels.unbind(1)
    sixths = torch.where(
        high == red,
        (green - blue) / safe,
        torch.where(high == green, (blue - red) / safe + 2.0, (red - green) / safe + 4.0),
    )
    sixths += 6.0 * per_sample(turn, images, name="turn").view(-1, 1, 1)
    start = sixths.new_tensor([0.0, 4.0, 2.0]).view(1, 3, 1, 1)  # red is full at 0, green at 2, blue at 4 sixths
    corners = (sixths.unsqueeze(1) + start).remainder_(6.0).sub_(3.0).abs_().sub_(1.0).clamp_(0.0, 1.0)
    return as_levels(corners.mul_(span.unsqueeze(1)).add_(low.unsqueeze(1)), images)


def add_noise(images: Tensor, seeds: Tensor, *, sigma: PerSample) -> Tensor:
    """Gaussian noise that is a pure function of (seed, channel, row, column): no generator, the same on any cut.

    Args:
        images: (B, C, H, W), uint8 or floating.
        seeds: (B,) integers, one for each image, as drawn on the host.
        sigma: standard deviation as a share of the range, so 0.1 is 25.5 levels of uint8; one for all or (B,).
    Returns: a new tensor of the same shape and dtype, clamped.
    """
    check_images(images)
    top = ceiling(images)
    field = noise_field(seeds, shape=tuple(images.shape[1:]), device=images.device)
    pixels = torch.addcmul(images.to(torch.float32), field, per_pixel(sigma, images, name="sigma") * top)
    return as_levels(pixels.clamp_(0, top), images)


def noise_field(seeds: Tensor, *, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Standard normal numbers (B, *shape): Box and Muller's, from two hashes of (seed, place) each."""
    num_places = torch.Size(shape).numel()
    seeds = seeds.to(device=device, dtype=torch.int64).view(-1, 1)
    key = _hash(seeds & 0xFFFFFFFF) ^ _hash((seeds >> 32) + 0x9E3779B9 & 0xFFFFFFFF)
    place = torch.arange(num_places, device=device)
    first, second = _hash((2 * place) ^ key), _hash((2 * place + 1) ^ key)
    radius = ((first >> 8).to(torch.float32) + 1.0).mul_(2.0**-24).log_().mul_(-2.0).sqrt_()
    angle = (second >> 8).to(torch.float32).mul_(2.0**-24 * 2.0 * torch.pi)
    return (radius * angle.cos_()).view(-1, *shape)


def _hash(words: Tensor) -> Tensor:
    """32 bits to 32 bits, in int64. Source: the lowest-bias constants of Wellons' hash prospector ("lowbias32")."""
    words = ((words ^ (words >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
    words = ((words ^ (words >> 15)) * 0x846CA68B) & 0xFFFFFFFF
    return words ^ (words >> 16)
