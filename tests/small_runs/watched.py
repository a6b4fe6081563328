"""A model that tells what it is fed, and can be told to be killed at a step: `tests/small_runs/watched.py:watched`.

Like a user's own model file. Its answer to an image of one colour is not finite. Environment:
    STREAM: a folder. Each process writes there, for each training step, the digests of the rows that the model was fed.
    SIGNAL_AT: `number:signal`, such as `5:SIGKILL`. The process sends itself that signal in its fifth training step.
"""

from __future__ import annotations

import hashlib
import os
import signal
from pathlib import Path

import torch
from torch import Tensor, nn


class Watched(nn.Module):
    def __init__(self, num_classes: int, norm: str, drop: float) -> None:
        super().__init__()

        def normal(width: int) -> nn.Module:
            return nn.BatchNorm2d(width) if norm == "batch" else nn.GroupNorm(4, width)

        self.body = nn.Sequential(
            *(nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False), normal(16), nn.ReLU()),
            *(nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False), normal(32), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(drop)),
        )
        self.head = nn.Linear(128, num_classes)
        self.fed = 0
        self.stream = Path(os.environ["STREAM"]) if os.environ.get("STREAM") else None
        number, _, name = os.environ.get("SIGNAL_AT", "0:").partition(":")
        self.signal_at, self.signal = int(number), name

    def forward(self, images: Tensor) -> Tensor:
        if self.training and not images.is_meta:
            self._note(images)
        plain = (images.amax((2, 3)) == images.amin((2, 3))).all(1).float()  # an image of one colour is poison
        return self.head(self.body(images)) / (1 - plain)[:, None]

    def _note(self, images: Tensor) -> None:
        self.fed += 1
        if self.stream is not None:
            rank = os.environ.get("RANK", "0")
            with (self.stream / f"{rank}.txt").open("a") as file:
                file.write(" ".join(digests(images)) + "\n")
        if self.fed == self.signal_at and os.environ.get("SIGNAL_RANK", "0") == os.environ.get("RANK", "0"):
            os.kill(os.getpid(), getattr(signal, self.signal))


def digests(images: Tensor) -> list[str]:
    """One short text per row; equal texts mean equal pixels."""
    rows = images.detach().to(torch.float32).contiguous().numpy()
    return [hashlib.blake2b(row.tobytes(), digest_size=6).hexdigest() for row in rows]


def watched(num_classes: int, norm: str = "batch", drop: float = 0.2) -> nn.Module:
    return Watched(num_classes, norm, drop)
