"""The work that every arm of the loop benchmark does, and the two arms that matter most: the plain loop and Kiln's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kiln.engine.fit import fit
from kiln.engine.state import State
from kiln.engine.step import Step
from kiln.engine.supervised import supervised
from kiln.events import StepDone
from kiln.losses import CrossEntropy

OnStep = Callable[[Tensor], None]
"""Called at the end of each step with its loss, a 0-d tensor."""

NUM_CLASSES = 10


@dataclass(frozen=True)
class Work:
    """A model, its optimizer and batches in memory. Every call of `model` gives the same weights.

    Attributes:
        name: in the table.
        make: builds the model, for `NUM_CLASSES` classes.
        batch_size: images per step.
        px: side of the square images.
        threads: that torch computes with.
    """

    name: str
    make: Callable[[], nn.Module]
    batch_size: int
    px: int
    threads: int

    def model(self) -> nn.Module:
        """A fresh model in training mode."""
        torch.manual_seed(0)
        return self.make().train()

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """The same for all arms: fused AdamW, one group, a constant rate."""
        return torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0, fused=True)

    def batches(self, num_steps: int) -> InMemory:
        """One pass of `num_steps` batches."""
        return InMemory(self, num_steps)


class InMemory:
    """Eight batches, again and again. Small enough for the caches, so that memory traffic blurs nothing."""

    def __init__(self, work: Work, num_steps: int) -> None:
        generator = torch.Generator().manual_seed(1)
        shape = (work.batch_size, 3, work.px, work.px)
        self._batches = [
            (
                torch.randn(shape, generator=generator),
                torch.randint(0, NUM_CLASSES, (work.batch_size,), generator=generator),
            )
            for _ in range(min(8, num_steps))
        ]
        self.num_steps = num_steps

    def __len__(self) -> int:
        return self.num_steps

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if index >= self.num_steps:
            raise IndexError(index)
        return self._batches[index % len(self._batches)]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return (self[index] for index in range(self.num_steps))


Arm = Callable[[Work, int, OnStep], None]
"""Trains a fresh model for a number of steps."""


def plain(work: Work, num_steps: int, on_step: OnStep) -> None:
    """The plainest correct loop."""
    model = work.model()
    optimizer = work.optimizer(model)
    for images, targets in work.batches(num_steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), targets)
        loss.backward()
        optimizer.step()
        on_step(loss.detach())


def kiln(work: Work, num_steps: int, on_step: OnStep) -> None:
    """Kiln's loop with all that it does besides: the guard, seeds for dropout, the exact mean of an epoch, events."""
    model = work.model()
    state = State(model, work.optimizer(model))
    step = Step(supervised(CrossEntropy()))
    for event in fit(state, step, work.batches(num_steps), total_steps=num_steps):
        if isinstance(event, StepDone):
            on_step(event.loss)


def tiny_net() -> nn.Module:
    """Two convolutions with BatchNorm and a head: 5,500 parameters."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, NUM_CLASSES),
    )


def resnet18() -> nn.Module:
    """timm's resnet18, 11 million parameters."""
    import timm

    return timm.create_model("resnet18", num_classes=NUM_CLASSES)
