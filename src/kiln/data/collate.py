"""From samples to one batch: padded to the largest image, or as a function of the user's own puts them together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kiln.errors import UsageError
from kiln.pixels import stack_padded

Sample = tuple[Tensor, Tensor]
"""An image (C, H, W) uint8 and its target."""
Collate = Callable[[Sequence[Sample]], Sequence[Any]]


def pad(samples: Sequence[Sample]) -> tuple[Tensor, Tensor, Tensor]:
    """Images of different sizes, black to the right and below up to the largest of the batch.

    Returns: images (B, C, H, W), targets (B, ...), sizes (B, 2): height and width of each.
    """
    images, sizes = stack_padded([image.permute(1, 2, 0).numpy() for image, _ in samples])
    targets = torch.stack([target for _, target in samples])
    return torch.from_numpy(images).permute(0, 3, 1, 2), targets, torch.from_numpy(sizes)


def collated(collate: Collate, samples: Sequence[Sample]) -> tuple[Tensor, Tensor, Tensor | None]:
    """What a collate function makes of samples, after a look at it.

    Raises: UsageError: it returned something else than images (B, C, H, W), targets, and perhaps sizes (B, 2).
    """
    made = collate(samples)
    parts: tuple[Any, ...] = tuple(made) if isinstance(made, (tuple, list)) else (made,)
    num, arrays = len(samples), all(isinstance(part, (Tensor, np.ndarray)) for part in parts)
    if arrays and 2 <= len(parts) <= 3 and _fits(num, *parts):
        images, targets, *sizes = (torch.as_tensor(part) for part in parts)
        return images, targets, sizes[0] if sizes else None
    shapes = [f"{getattr(part, 'dtype', type(part).__name__)} {tuple(getattr(part, 'shape', ()))}" for part in parts]
    raise UsageError(
        "E107",
        f"the collate function {getattr(collate, '__name__', collate)} returned {', '.join(shapes)}",
        expected=f"images uint8 ({num}, C, H, W) and targets ({num}, ...), a row for each of the {num} samples; perhaps "
        f"sizes ({num}, 2)",
        hint="scaling and normalisation are part of the model",
    )


def _fits(num: int, images: Any, targets: Any, sizes: Any = None) -> bool:
    """Whether these are a batch of `num` samples."""
    is_uint8 = images.dtype in (torch.uint8, np.uint8)
    rows = images.ndim == 4 and len(images) == num and targets.ndim >= 1 and len(targets) == num
    return is_uint8 and rows and (sizes is None or tuple(sizes.shape) == (num, 2))
