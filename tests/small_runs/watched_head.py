"""A model whose head can be told to be killed at a step: `tests/small_runs/watched_head.py:watched_head`.

Like a user's own model file. Environment:
    SIGNAL_AT: `number:signal`, such as `5:SIGKILL`. The process sends itself that signal in the head's fifth training step.
    COUNTS: a file, where each call of the model adds a line with its number of images.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import torch
from torch import Tensor, nn


class Head(nn.Linear):
    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__(width, num_classes)
        self.steps = 0
        number, _, name = os.environ.get("SIGNAL_AT", "0:").partition(":")
        self.signal_at, self.signal = int(number), name

    def forward(self, features: Tensor) -> Tensor:
        if self.training and torch.is_grad_enabled():
            self.steps += 1
            if self.steps == self.signal_at:
                os.kill(os.getpid(), getattr(signal, self.signal))
        return super().forward(features)


class WatchedHead(nn.Module):
    def __init__(self, num_classes: int, norm: str, drop: float) -> None:
        super().__init__()

        def normal(width: int) -> nn.Module:
            return nn.BatchNorm2d(width) if norm == "batch" else nn.GroupNorm(4, width)

        self.body = nn.Sequential(
            *(nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False), normal(16), nn.ReLU()),
            *(nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False), normal(32), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(2), nn.Flatten()),
        )
        self.drop = nn.Dropout(drop)
        self.head = Head(128, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        if (counts := os.environ.get("COUNTS")) and not images.is_meta:
            with Path(counts).open("a") as file:
                file.write(f"{len(images)}\n")
        return self.head(self.drop(self.body(images)))


def watched_head(num_classes: int, norm: str = "batch", drop: float = 0.2) -> nn.Module:
    return WatchedHead(num_classes, norm, drop)
