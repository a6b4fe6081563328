"""A model file on torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from kiln.batch import mask_of
from kiln.models.device import resolve_device
from kiln.models.modelfile import ModelFile, read_model
from kiln.models.normalize import Normalized


class TorchRuntime:
    """Runs a model file, or one already read, in float32 evaluation mode.

    Args:
        model: the path of a model file, or what `read_model` gave.
        device: see `resolve_device`.
        trusted: `module:function` names that the file may run.
    """

    name = "torch"

    def __init__(self, model: Path | ModelFile, *, device: str = "auto", trusted: tuple[str, ...] = ()) -> None:
        target = resolve_device(device)
        file = model if isinstance(model, ModelFile) else read_model(model, trusted=trusted)
        self.device = str(target)
        self.classes, self.contract, self.task = file.classes, file.contract, file.task
        self.decision, self.digest = file.decision, file.digest
        self.model = file.model
        spec = file.spec
        self._network = Normalized(file.model, spec.mean, spec.std, per_image=spec.per_image).to(target).eval()

    def logits(self, images: NDArray[np.uint8], sizes: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        """Logits (B, K) for images (B, C, H, W), padded ones with their `sizes` (B, 2). Waits for the device."""
        with torch.inference_mode():
            there = torch.from_numpy(images).to(self.device)
            if sizes is None:
                return self._network(there).float().cpu().numpy()
            mask = mask_of(torch.from_numpy(sizes).to(self.device), *there.shape[-2:])
            return self._network(there, mask=mask).float().cpu().numpy()
