"""Trainings for the tests of the loop: batches that follow from the step, states, and pictures of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kiln.batch import Batch
from kiln.engine.codec import encode
from kiln.engine.state import State, Tracker
from kiln.engine.step import Step
from kiln.engine.supervised import supervised
from kiln.losses import CrossEntropy
from kiln.optim.averages import Ema
from kiln.optim.groups import parameter_groups
from kiln.optim.optimizers import adamw, sgd


class Batches:
    """An epoch of samples in a fixed order, with all that the loop can make use of.

    Args:
        inputs: (N, ...); a batch is a cut of it.
        targets: (N, ...).
        size: samples per batch; the last may be smaller.
    """

    def __init__(self, inputs: Tensor, targets: Tensor, size: int) -> None:
        self.inputs, self.targets, self.size = inputs, targets, size
        self.asked: list[int] = []

    def __len__(self) -> int:
        return (len(self.inputs) + self.size - 1) // self.size

    def at(self, step: int) -> Batch:
        start = step % len(self) * self.size
        indices = np.arange(start, min(start + self.size, len(self.inputs)))
        return Batch(self.inputs[indices], self.targets[indices], positions=indices, indices=indices + 100)

    def from_step(self, step: int) -> Iterator[Batch]:
        while True:
            self.asked.append(step)
            yield self.at(step)
            step += 1

    def __iter__(self) -> Iterator[Batch]:
        return map(self.at, range(len(self)))


def pictures(num: int = 20, *, size: int = 8, num_classes: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(N, 3, size, size) float images whose class can be learnt, and (N,) labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num) % num_classes
    images = torch.randn(num, 3, size, size, generator=generator)
    return images + labels.view(-1, 1, 1, 1) * 0.5, labels


def make_state(
    model: nn.Module,
    *,
    opt: str = "adamw",
    lr: float = 0.01,
    ema: float = 0.0,
    patience: int | None = None,
    **options: Any,
) -> State:
    groups = parameter_groups(model, lr=lr, weight_decay=0.01)
    make = {"adamw": adamw, "sgd": sgd}[opt]
    average = Ema(model, decay=ema) if ema else None
    return State(model, make(groups, lr=lr, **options), average=average, tracker=Tracker("accuracy", patience=patience))


def make_step(**settings: Any) -> Step:
    return Step(supervised(CrossEntropy(smoothing=0.1)), **settings)


def plain_loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(model(images), labels, label_smoothing=0.1)


def frozen(state: State) -> dict[str, Tensor]:
    """Copies of every tensor of a state (weights, buffers, averages, optimizer), by place."""
    return encode(state.state())[1]


def differing(before: dict[str, Tensor], after: dict[str, Tensor]) -> list[str]:
    """Places whose tensors are not equal bit for bit, or that only one side has."""
    return sorted(
        name
        for name in before.keys() | after.keys()
        if name not in before or name not in after or not torch.equal(before[name], after[name])
    )


def largest_gap(one: nn.Module, other: nn.Module) -> float:
    """The largest absolute difference between two models' tensors."""
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return max(float((a.double() - b.double()).abs().max()) for a, b in pairs)
