"""The part of preprocessing that lives inside the model: uint8 -> scaled -> normalised."""

from __future__ import annotations

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


class Normalized(nn.Module):
    """A classifier that takes the pixel contract's own uint8 images: (B, C, H, W) -> logits (B, K).

    Auxiliary outputs are dropped. Used for evaluation, prediction and export; it shares the weights of `model`.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(list(mean), dtype=torch.float32).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(list(std), dtype=torch.float32).view(-1, 1, 1))

    def forward(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits (B, K) for uint8 images (B, C, H, W); padded ones come with their mask (B, H, W), and are 0 outside."""
        normalized = normalize(images, self.mean, self.std)
        if mask is None:
            return main_and_auxiliary(self.model(normalized))[0]
        return main_and_auxiliary(self.model(normalized * mask[:, None], mask=mask))[0]
