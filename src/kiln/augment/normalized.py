"""The last step of every policy: levels to what the model takes, in the same pass over memory as what came before."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kiln.augment import compiled
from kiln.augment.chunks import pieces_of
from kiln.augment.geometry import flips
from kiln.augment.recycled import recycled_like
from kiln.augment.values import is_channels_last
from kiln.errors import UsageError

Mask = NDArray[np.bool_]
LINE_PIECE_VALUES = 2**21
"""Values that a thread normalises at once: a third of a millisecond of work, as against a tenth to begin a thread."""


@dataclass(frozen=True)
class Output:
    """What a policy's images become: levels as they are, or normalised and in some dtype.

    Attributes:
        mean: (C,) in 0..1, or None for uint8 levels.
        std: (C,) in 0..1, or None.
        dtype: of normalised images.
    """

    mean: Tensor | None = None
    std: Tensor | None = None
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        if (self.mean is None) != (self.std is None):
            raise UsageError("E107", "only one of mean and std is given", expected="both for floats, or none for uint8")

    def empty_like(self, images: Tensor) -> Tensor:
        """A batch to write into."""
        return recycled_like(images, torch.uint8 if self.mean is None else self.dtype)

    def scale_and_offset(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """What turns levels 0..255 of each channel into outputs. Returns: two tensors (C, 1, 1) float32."""
        num_channels, device = images.shape[1], images.device
        if self.mean is None or self.std is None:
            return torch.ones(num_channels, 1, 1, device=device), torch.zeros(num_channels, 1, 1, device=device)
        mean, std = (value.detach().to(device, torch.float32).flatten() for value in (self.mean, self.std))
        if {len(mean), len(std)} - {1, num_channels}:
            what = f"mean and std have {len(mean)} and {len(std)} values"
            raise UsageError("E107", what, expected=f"one for each of the {num_channels} channels")
        mean, std = mean.expand(num_channels), std.expand(num_channels)
        return (1.0 / (255.0 * std)).view(-1, 1, 1), (-mean / std).view(-1, 1, 1)

    def write(self, values: Tensor, out: Tensor) -> None:
        """Put float32 outputs where they belong; `values` may be overwritten."""
        if out.dtype == torch.uint8:
            values.round_()
        if values.data_ptr() != out.data_ptr():
            out.copy_(values)


def normalized(
    images: Tensor,
    output: Output,
    across: Mask | None = None,
    down: Mask | None = None,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """A uint8 batch (B, C, H, W), mirrored where the masks (B,) say, as `output` says, in `out` where that is given."""
    nobody = np.zeros(len(images), bool)
    across, down = (nobody if mask is None else mask for mask in (across, down))
    out = output.empty_like(images) if out is None else out
    scale, offset = output.scale_and_offset(images)
    kernels_serve = output.mean is not None and compiled.takes(images)
    if kernels_serve and compiled.lines_are_loaded():
        same = out.dtype == torch.float32 and is_channels_last(out) == is_channels_last(images)
        values = out if same else torch.empty_like(images, dtype=torch.float32)
        _by_kernels(images, values, mirrored=(across, down), scale=scale, offset=offset)
        output.write(values, out)
        return out
    scale_of_line, offset_of_line = (value.flatten().repeat(images.shape[-1]) for value in (scale, offset))
    for rows in pieces_of(images):
        levels, place = flips(images[rows], across[rows], down[rows]), out[rows]
        if output.mean is None:
            place.copy_(levels)
            continue
        values = place if place.dtype == torch.float32 else torch.empty_like(place, dtype=torch.float32)
        values.copy_(levels)
        if is_channels_last(values):
            # As rows of whole lines: with the three channels innermost, a factor for each channel costs ten times more.
            lines = values.permute(0, 2, 3, 1).reshape(-1, len(scale_of_line))
            torch.mul(lines, scale_of_line, out=lines).add_(offset_of_line)  # rounded twice, as the kernels do
        else:
            values.mul_(scale).add_(offset)
        output.write(values, place)
    if kernels_serve:
        compiled.load_lines()  # only now, so that this batch need not share the processor
    return out


def _by_kernels(images: Tensor, values: Tensor, *, mirrored: tuple[Mask, Mask], scale: Tensor, offset: Tensor) -> None:
    """Scale and move each channel of uint8 images into float32 `values`, which lie in memory as they do."""
    from kiln.augment.line_kernels import Lines, line_memory, normalize_lines

    together, (height, width) = is_channels_last(images), images.shape[2:]
    levels, out = (compiled.as_stored(batch) for batch in (images, values))
    if together:
        levels, out = (batch.reshape(len(images), 1, height, 3 * width) for batch in (levels, out))
    factors = [
        value.flatten().repeat(width).view(1, -1) if together else value.view(3, 1).repeat(1, width)
        for value in (scale, offset)
    ]
    work = Lines(
        levels=levels,
        out=out,
        across=mirrored[0],
        down=mirrored[1],
        pixels_together=together,
        scale=factors[0].numpy(),
        offset=factors[1].numpy(),
    )
    rows, size = slice(0, len(images)), (height, width)
    compiled.in_threads(normalize_lines, work, rows, size=size, memory=line_memory, piece_values=LINE_PIECE_VALUES)


def standardize(images: Tensor, *, per_channel: bool = True) -> Tensor:
    """Take from each image its own mean and divide by its own standard deviation; a constant image becomes 0.

    The deviation is at least 1 / sqrt(number of values) of the range, as in TensorFlow's `per_image_standardization`.

    Args:
        images: (B, C, H, W), uint8 or floating.
        per_channel: each channel by itself, or the whole image.
    Returns: a new tensor, float32 for uint8, else of the same dtype.
    """
    values = images.to(torch.float32)
    if images.dtype == torch.uint8:
        values = values / 255.0
    dims = (-2, -1) if per_channel else (-3, -2, -1)
    deviation, mean = torch.std_mean(values, dim=dims, correction=0, keepdim=True)
    num = values[0].numel() // (images.shape[1] if per_channel else 1) if len(images) else 1
    result = (values - mean) / deviation.clamp(min=num**-0.5)
    return result if images.dtype == torch.uint8 else result.to(images.dtype)
