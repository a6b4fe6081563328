"""The last step of every policy: levels to what the model takes, in the same pass over memory as what came before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kiln.augment.chunks import pieces_of
from kiln.augment.recycled import recycled_like
from kiln.augment.values import is_channels_last
from kiln.errors import UsageError


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


def normalized(images: Tensor, output: Output, levels_of: Callable[[slice], Tensor]) -> Tensor:
    """A batch in pieces: `levels_of` some rows, uint8 (B, C, H, W), become what `output` says."""
    out = output.empty_like(images)
    scale, offset = output.scale_and_offset(images)
    scale_of_line, offset_of_line = (value.flatten().repeat(images.shape[-1]) for value in (scale, offset))
    for rows in pieces_of(images):
        levels, place = levels_of(rows), out[rows]
        if output.mean is None:
            place.copy_(levels)
            continue
        values = place if place.dtype == torch.float32 else torch.empty_like(place, dtype=torch.float32)
        values.copy_(levels)
        if is_channels_last(values):
            # As rows of whole lines: with the three channels innermost, a factor for each channel costs ten times more.
            lines = values.permute(0, 2, 3, 1).reshape(-1, len(scale_of_line))
            torch.addcmul(offset_of_line, lines, scale_of_line, out=lines)
        else:
            values.mul_(scale).add_(offset)
        output.write(values, place)
    return out


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
