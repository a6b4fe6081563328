"""A batch through flips or one warp, rare steps, colour, normalisation and erasing, by compiled kernels or by torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from kiln.augment import compiled
from kiln.augment.chunks import pieces_of
from kiln.augment.color import add_noise, adjust_gamma, adjust_hue, multiply_colors
from kiln.augment.erasing import erase_windows_
from kiln.augment.filters import gaussian_blur
from kiln.augment.geometry import Places, flips
from kiln.augment.normalized import Output
from kiln.augment.values import is_channels_last

MAX_BLUR_PX = 4
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Plan:
    """What was drawn for a batch, as its pieces use it: everything that does not need the pixels is made once.

    Attributes:
        across: (B,) mirrored left to right by index; a warped image is mirrored by its matrix.
        down: (B,) mirrored top to bottom by index.
        warped: (B,) interpolated.
        rare: for each step that is not affine in the pixel, (B,) its value, or NaN where it does nothing; in their order.
        noise_seeds: (B,) of the noise.
        places: where warped pixels come from.
        linear: (B, C, C), colour and normalisation as factors of the channels.
        of_mean: (B, C, C), what the mean colour adds.
        offset: (C,), what normalisation adds.
        limits: (C, 2), black and white after normalisation.
        boxes: (B, 4), top, left, bottom, right of what is erased.
        output: what the images become.
    """

    across: Mask
    down: Mask
    warped: Mask
    rare: dict[str, NDArray[np.float64]]
    noise_seeds: NDArray[np.int64]
    places: Places
    linear: Tensor
    of_mean: Tensor
    offset: Tensor
    limits: Tensor
    boxes: NDArray[np.int64]
    output: Output

    @property
    def fill(self) -> float:
        """What an erased place holds: the mean colour, or grey."""
        return 128.0 if self.output.mean is None else 0.0

    def has_rare(self, rows: slice) -> bool:
        """Whether any of the rare steps happens to some images."""
        return any(not np.isnan(values[rows]).all() for values in self.rare.values())

    def rarely(self, pixels: Tensor, rows: slice) -> Tensor:
        """Blur, noise, hue and gamma, for the rows that drew them; float32 planes in 0..255, in place."""
        for name, values in self.rare.items():
            some = np.flatnonzero(~np.isnan(values[rows]))
            if len(some) == 0:
                continue
            there = torch.from_numpy(some).to(pixels.device)
            value = torch.from_numpy(values[rows][some])
            changed = pixels.index_select(0, there) / 255.0
            if name == "blur":
                largest = 2 * min(min(pixels.shape[-2:]) - 1, MAX_BLUR_PX) + 1
                changed = gaussian_blur(changed, value, kernel_size=largest)
            elif name == "noise":
                changed = add_noise(changed, torch.from_numpy(self.noise_seeds[rows][some]), sigma=value)
            elif name == "hue":
                changed = adjust_hue(changed, value)
            else:
                changed = adjust_gamma(changed, value)
            pixels.index_copy_(0, there, changed.mul_(255.0))
        return pixels


def render(images: Tensor, plan: Plan) -> Tensor:
    """Do what was drawn to (B, C, H, W) uint8 images. Returns: a new tensor, as the plan's `output` says."""
    out = plan.output.empty_like(images)
    if compiled.takes(images):
        _by_kernels(images, plan, out)
        return out
    for rows in pieces_of(images):
        pixels = plan.rarely(_moved(images[rows], plan, rows), rows)
        added = (plan.of_mean[rows] * pixels.mean((-2, -1)).unsqueeze(1)).sum(2) + plan.offset  # (B, C)
        values = multiply_colors(pixels, plan.linear[rows, :, :, None, None]).add_(added[..., None, None])
        for channel, (least, most) in enumerate(plan.limits.tolist()):
            values[:, channel].clamp_(least, most)
        plan.output.write(values, out[rows])
        erase_windows_(out[rows], plan.boxes[rows], fill=plan.fill)
    return out


def _moved(images: Tensor, plan: Plan, rows: slice) -> Tensor:
    """Mirrored or warped, (B, C, H, W) float32 in 0..255: a new tensor."""
    images = flips(images, plan.across[rows], plan.down[rows])
    # As planes: with the channels of a pixel side by side, every factor for a channel would cost ten times as much.
    pixels = images.to(torch.float32, memory_format=torch.contiguous_format)
    warped = plan.warped[rows]
    if warped.all():
        return F.grid_sample(pixels, plan.places.grid(rows), align_corners=False)
    if warped.any():
        some = torch.from_numpy(np.flatnonzero(warped)).to(images.device)
        sampled = F.grid_sample(pixels.index_select(0, some), plan.places.grid(some + rows.start), align_corners=False)
        pixels.index_copy_(0, some, sampled)
    return pixels


def _by_kernels(images: Tensor, plan: Plan, out: Tensor) -> None:
    """What `render` does with torch's operations, by `kernels.py`; the rare steps stay torch's."""
    from kiln.augment import kernels

    size = (images.shape[-2], images.shape[-1])
    values = out if out.dtype == torch.float32 else torch.empty_like(images, dtype=torch.float32)
    work = kernels.Work(
        levels=compiled.as_stored(images),
        out=compiled.as_stored(values),
        pixels_together=is_channels_last(images),
        out_together=is_channels_last(values),
        across=plan.across,
        down=plan.down,
        warped=plan.warped,
        matrices=plan.places.matrix.contiguous().numpy(),
        projective=plan.places.projective,
        linear=plan.linear.contiguous().numpy(),
        of_mean=plan.of_mean.contiguous().numpy(),
        offset=plan.offset.contiguous().numpy(),
        limits=plan.limits.contiguous().numpy(),
        boxes=plan.boxes,
        fill=plan.fill,
        stage=kernels.WHOLE,
        pixels=np.empty((0, 3, *size), np.float32),
        first=0,
    )
    if not plan.has_rare(slice(None)):
        compiled.in_threads(kernels.augment, work, slice(0, len(images)), size=size, memory=kernels.memory)
    else:
        for rows in pieces_of(images):
            pixels = torch.empty(rows.stop - rows.start, 3, *size)
            some = work._replace(pixels=pixels.numpy(), first=rows.start)
            compiled.in_threads(
                kernels.augment, some._replace(stage=kernels.MOVE), rows, size=size, memory=kernels.memory
            )
            plan.rarely(pixels, rows)
            compiled.in_threads(
                kernels.augment, some._replace(stage=kernels.FINISH), rows, size=size, memory=kernels.memory
            )
    plan.output.write(values, out)
