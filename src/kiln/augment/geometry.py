"""Crops and flips move pixels; everything else is one matrix per image and at most one interpolation.

A matrix (3, 3) takes a place in the output to the place in the input where its pixel comes from, in pixels from the
middle of the image: x to the right, y down. Matrices are made and composed on the host in float64.
"""

from __future__ import annotations

from functools import cached_property
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from kiln.augment.values import PerSample, as_levels, check_images, is_channels_last
from kiln.errors import UsageError

Interpolation = Literal["bilinear", "nearest"]


_SMALL = 2**14
"""Values of an image that is so small that a call costs more than its pixels."""


def flip(images: Tensor, mask: Tensor, *, dim: int = -1) -> Tensor:
    """Mirror the images that `mask` names, by reversing an index.

    Args:
        images: (B, C, H, W), any dtype.
        mask: (B,) bool.
        dim: -1 mirrors left to right, -2 top to bottom.
    Returns: a new tensor; the input is not changed.
    """
    if images.device.type != "cpu":  # asking which rows would wait for the device
        return torch.where(mask.view(-1, 1, 1, 1), images.flip(dim), images)
    rows = mask.nonzero()[:, 0]
    if len(rows) == len(images):
        return images.flip(dim)
    if images[0].numel() <= _SMALL:  # mirror them all and pick whole images: fewer calls
        both = torch.cat([images, images.flip(dim)])
        order = (0, 2, 3, 1) if is_channels_last(both) else (0, 1, 2, 3)
        stored = both.permute(order)
        rows = torch.arange(len(images)).add_(mask, alpha=len(images))
        picked = stored.reshape(len(both), -1).index_select(0, rows).view(len(images), *stored.shape[1:])
        return picked.permute(0, 3, 1, 2) if order[1] == 2 else picked
    out = images.clone()
    for row in rows.tolist():  # image by image in the cache: ten times faster than to gather and scatter them
        out[row] = images[row].flip(dim)
    return out


def flips(images: Tensor, across: NDArray[np.bool_], down: NDArray[np.bool_]) -> Tensor:
    """Mirror the images that each mask (B,) on the host names; the images themselves when there are none."""
    for mask, dim in ((across, -1), (down, -2)):
        if mask.all():
            images = images.flip(dim)
        elif mask.any():
            images = flip(images, torch.from_numpy(mask).to(images.device), dim=dim)
    return images


def crop(images: Tensor, top: Tensor, left: Tensor, *, size: tuple[int, int], fill: float = 0) -> Tensor:
    """Cut a window out of each image, each at its own place; what lies outside the image is filled.

    Crop with padding p: `top` and `left` between -p and p, `size` that of the image.

    Args:
        images: (B, C, H, W), any dtype.
        top: (B,) integers on the host, the window's first row; may be negative.
        left: (B,) integers on the host, its first column.
        size: height and width of all windows.
        fill: the value outside.
    Returns: (B, C, *size), a new tensor.
    """
    height, width = images.shape[-2:]
    out = images.new_full((*images.shape[:2], *size), fill)
    for row, (t, x) in enumerate(zip(top.tolist(), left.tolist(), strict=True)):
        part = images[row, :, max(t, 0) : max(t + size[0], 0), max(x, 0) : max(x + size[1], 0)]
        down, right = max(-t, 0), max(-x, 0)
        if t < height and x < width and part.numel():
            out[row, :, down : down + part.shape[-2], right : right + part.shape[-1]] = part
    return out


def shift(images: Tensor, x_px: Tensor, y_px: Tensor, *, fill: float = 0) -> Tensor:
    """Move each image by whole pixels, to the right and down. `x_px`, `y_px`: (B,) integers on the host."""
    return crop(images, -y_px, -x_px, size=(images.shape[-2], images.shape[-1]), fill=fill)


def affine_matrix(
    num: int,
    *,
    angle: PerSample = 0.0,
    translate: tuple[PerSample, PerSample] = (0.0, 0.0),
    scale: PerSample = 1.0,
    shear: tuple[PerSample, PerSample] = (0.0, 0.0),
) -> Tensor:
    """Rotation, shear, scale and translation about the middle, with torchvision's meaning of each.

    Args:
        num: how many images, B. Each number is one for all or (B,).
        angle: degrees, clockwise.
        translate: pixels to the right and down.
        scale: above 1 enlarges.
        shear: degrees along x and along y.
    Returns: (B, 3, 3) float64 on the host.
    """
    # By NumPy: torch takes sines by MKL, whose threads cost a hundred times as much here when others are at work too.
    numbers = [angle, *translate, scale, *shear]
    tensors = (torch.as_tensor(number, dtype=torch.float64).cpu().expand(num) for number in numbers)
    angle_, x, y, scale_, shear_x, shear_y = (tensor.numpy() for tensor in tensors)
    turn, slant = np.deg2rad(angle_), np.deg2rad(shear_y)
    tangent = np.tan(np.deg2rad(shear_x))
    a, c = np.cos(turn - slant) / np.cos(slant), np.sin(turn - slant) / np.cos(slant)
    b, d = -(a * tangent + np.sin(turn)), np.cos(turn) - c * tangent
    zero, one = np.zeros(num), np.ones(num)
    a, b, c, d = d / scale_, -b / scale_, -c / scale_, a / scale_  # the inverse: the determinant was scale squared
    rows = [a, b, -(a * x + b * y), c, d, -(c * x + d * y), zero, zero, one]
    return torch.from_numpy(np.stack(rows, axis=-1).reshape(num, 3, 3))


def flip_matrix(horizontal: Tensor, vertical: Tensor) -> Tensor:
    """Mirroring as a matrix, exact, to compose with others. Both (B,) bool. Returns: (B, 3, 3) float64."""
    signs = torch.stack([1.0 - 2.0 * horizontal.double(), 1.0 - 2.0 * vertical.double()], dim=-1).cpu()
    return torch.diag_embed(F.pad(signs, (0, 1), value=1.0))


def perspective_matrix(corners: Tensor, *, size: tuple[int, int]) -> Tensor:
    """The view in which the corners of the image come to lie elsewhere.

    Args:
        corners: (B, 4, 2), how far each corner moves, x and y in pixels: upper left, upper right, lower right, lower left.
        size: height and width of the images.
    Returns: (B, 3, 3) float64 on the host.
    Raises: UsageError: corners that fall on one line.
    """
    height, width = size
    x, y = (width - 1) / 2, (height - 1) / 2
    start = torch.tensor([[-x, -y], [x, -y], [x, y], [-x, y]], dtype=torch.float64)
    end = start + corners.cpu().double()  # (B, 4, 2)
    begin = start.expand_as(end)
    zero, one = torch.zeros_like(end[..., :1]), torch.ones_like(end[..., :1])
    u, v = begin[..., :1], begin[..., 1:]
    upper = torch.cat([end, one, zero, zero, zero, -u * end], dim=-1)
    lower = torch.cat([zero, zero, zero, end, one, -v * end], dim=-1)
    try:
        found = torch.linalg.solve(torch.cat([upper, lower], dim=1), torch.cat([u, v], dim=1)[..., 0])
    except RuntimeError as error:
        raise UsageError("E102", "corners lie on one line", expected="four corners that span an area") from error
    return F.pad(found, (0, 1), value=1.0).view(-1, 3, 3)


def compose(*matrices: Tensor) -> Tensor:
    """One matrix for several steps, the first step first. Each (B, 3, 3)."""
    whole = matrices[0]
    for matrix in matrices[1:]:
        whole = whole @ matrix  # places are followed backwards, from the last output to the first input
    return whole


def moves(matrix: Tensor) -> Tensor:
    """Which matrices are not the identity, (B,) bool."""
    return (matrix != torch.eye(3, dtype=matrix.dtype, device=matrix.device)).flatten(1).any(1)


def warp(images: Tensor, matrix: Tensor, *, interpolation: Interpolation = "bilinear", fill: float = 0.0) -> Tensor:
    """Interpolate each image once, where its matrix says; an image whose matrix is the identity is only copied.

    Equals torchvision's `affine`, `rotate` and `perspective` without a fill, and with one for nearest. At the border of
    a bilinear warp torchvision fades its fill twice; here the pixel is the weighted mean of image and fill.

    Args:
        images: (B, C, H, W), uint8 or floating, any number of channels.
        matrix: (B, 3, 3), on the host, else asking for identities waits for the device.
        interpolation: bilinear or nearest.
        fill: the value outside the image.
    Returns: a new tensor of the same shape and dtype.
    """
    check_images(images)
    if interpolation not in ("bilinear", "nearest"):
        what = f"interpolation = {interpolation!r}"
        raise UsageError("E101", what, got=interpolation, choices=("bilinear", "nearest"))
    rows = moves(matrix).nonzero()[:, 0]
    if len(rows) == len(images):
        return as_levels(_sample(images, matrix, interpolation, fill), images)
    out = images.clone()
    if len(rows):
        there = rows.to(images.device)
        some = images.index_select(0, there)
        out.index_copy_(0, there, as_levels(_sample(some, matrix[rows], interpolation, fill), images))
    return out


def _sample(images: Tensor, matrix: Tensor, interpolation: Interpolation, fill: float) -> Tensor:
    values = images.to(torch.float32)
    if fill:
        values = values - fill  # what lies outside is zero, so the fill comes back with the last line
    grid = Places(matrix, size=(images.shape[-2], images.shape[-1]), device=images.device).grid(slice(None))
    sampled = F.grid_sample(values, grid, mode=interpolation, padding_mode="zeros", align_corners=False)
    return sampled.add_(fill) if fill else sampled


class Places:
    """Where each output pixel comes from, as `grid_sample` wants it: -1 to 1, x first.

    An affine place is a sum of one number per row and one per column, so there are two small tables for the whole batch
    and one addition per image: a tenth of the time of `affine_grid`. The two coordinates are kept as planes.

    Args:
        matrix: (B, 3, 3) on the host.
        size: height and width.
        device: where the images are.
    """

    def __init__(self, matrix: Tensor, *, size: tuple[int, int], device: torch.device) -> None:
        self.size, (height, width) = size, size
        self.projective = bool((matrix[:, 2] != matrix.new_tensor([0.0, 0.0, 1.0])).any())
        units = matrix.new_tensor([2.0 / width, 2.0 / height, 1.0]).view(3, 1)
        self.matrix = (matrix * units).to(device=device, dtype=torch.float32)  # (B, 3, 3)

    @cached_property
    def tables(self) -> tuple[Tensor, Tensor]:
        """What a column adds, (B, 3, 1, W), and what a row adds, (B, 3, H, 1)."""
        (height, width), m = self.size, self.matrix.unsqueeze(-1)
        x = torch.arange(width, device=m.device, dtype=torch.float32) - (width - 1) / 2
        y = torch.arange(height, device=m.device, dtype=torch.float32) - (height - 1) / 2
        return (m[:, :, 0] * x).unsqueeze(-2), (m[:, :, 1] * y + m[:, :, 2]).unsqueeze(-1)

    def grid(self, rows: slice | Tensor) -> Tensor:
        """(B, H, W, 2) for some rows."""
        across, down = (table[rows] for table in self.tables)
        grid = across[:, :2] + down[:, :2]
        if self.projective:
            grid = grid / (across[:, 2:] + down[:, 2:])
        return grid.permute(0, 2, 3, 1)
