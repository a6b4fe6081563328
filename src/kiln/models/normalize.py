"""The part of preprocessing that lives inside the model: uint8 -> scaled -> normalised."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kiln.models.outputs import main_and_auxiliary


def normalize(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Scale uint8 images to [0, 1] and standardise each channel.

    Args:
        images: (B, C, H, W) uint8.
        mean: (C, 1, 1) float, in units of [0, 1].
        std: (C, 1, 1) float.
    Returns: (B, C, H, W) of the dtype of `mean`.
    """
    scale = 1.0 / (255.0 * std)
    return torch.addcmul(-mean / std, images.to(mean.dtype), scale)  # one pass over the batch


def standardize_images(images: Tensor) -> Tensor:
    """Take from each image its own mean and divide by its own standard deviation, over all channels together.

    The deviation is at least 1 / sqrt(number of values), so a constant image becomes 0.
    Source: TensorFlow's `per_image_standardization`.

    Args:
        images: (B, C, H, W) float, in units of [0, 1].
    Returns: a new tensor of the same shape and dtype.
    """
    centred = images - images.mean((1, 2, 3), keepdim=True)
    deviation = centred.square().mean((1, 2, 3), keepdim=True).sqrt()
    return centred / deviation.clamp_min(math.prod(images.shape[1:]) ** -0.5)


class Normalized(nn.Module):
    """A classifier that takes the pixel contract's own uint8 images: (B, C, H, W) -> logits (B, K).

    Auxiliary outputs are dropped. Used for evaluation, prediction and export; it shares the weights of `model`.

    Args:
        model: takes normalised images.
        mean: per channel, in units of [0, 1].
        std: per channel.
        per_image: then standardise each image by itself, see `standardize_images`.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, model: nn.Module, mean: Sequence[float], std: Sequence[float], *, per_image: bool = False
    ) -> None:
        super().__init__()
        self.model, self.per_image = model, per_image
        self.register_buffer("mean", torch.tensor(list(mean), dtype=torch.float32).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(list(std), dtype=torch.float32).view(-1, 1, 1))

    def forward(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits (B, K) for uint8 images (B, C, H, W); padded ones come with their mask (B, H, W), and are 0 outside."""
        normalized = normalize(images, self.mean, self.std)
        if self.per_image:
            normalized = standardize_images(normalized)
        if mask is None:
            return main_and_auxiliary(self.model(normalized))[0]
        return main_and_auxiliary(self.model(normalized * mask[:, None], mask=mask))[0]
