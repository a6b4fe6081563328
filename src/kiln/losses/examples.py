"""Made-up outputs and targets of each kind, to try a loss on: random, right, wrong, empty."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kiln.losses import classification, regression
from kiln.losses.modules import CLASSES, LABELS, SHARES, VALUES

MASKS, EMBEDDINGS = "masks", "embeddings"
SHAPES = {EMBEDDINGS: (6,), CLASSES: (5,), SHARES: (5,), LABELS: (5,), VALUES: (5,), MASKS: (3, 8, 8)}


def _binary(outputs: Tensor, targets: Tensor) -> Tensor:
    return classification.binary_cross_entropy(outputs, targets.unsqueeze(1).to(outputs.dtype)).values


BINARY = ("binary_cross_entropy", _binary)
STANDARDS = {
    CLASSES: ("cross_entropy", classification.cross_entropy),
    SHARES: ("cross_entropy", classification.cross_entropy),
    MASKS: ("cross_entropy", classification.cross_entropy),
    LABELS: ("binary_cross_entropy", classification.binary_cross_entropy),
    VALUES: ("mse", regression.mse),
}


@dataclass(frozen=True)
class Example:
    """Outputs and targets of one kind, in float64.

    Attributes:
        kind: of the targets.
        outputs: (B, *shape), random.
        targets: as the kind has them; of a single output they are 0 and 1, no and yes.
        signs: (B, *shape), +1 where a right output is large, -1 where it is small; for values, the values; for
            embeddings, a direction for each class.
    """

    kind: str
    outputs: Tensor
    targets: Tensor
    signs: Tensor

    @property
    def is_binary(self) -> bool:
        """Whether one output says yes or no to each position: a mask of one class, which has no class 1 to be an index."""
        return self.kind in (CLASSES, MASKS) and self.outputs.shape[1] == 1

    @property
    def standard(self) -> tuple[str, Callable[[Tensor, Tensor], Any]]:
        """Name and function of the usual loss for such targets."""
        return BINARY if self.is_binary else STANDARDS.get(self.kind, STANDARDS[CLASSES])

    def right(self, size: float) -> Tensor:
        """Outputs that agree with the targets: logits of that size, or the values themselves."""
        return self.signs.clone() if self.kind == VALUES else size * self.signs

    def wrong(self, size: float) -> Tensor:
        """Outputs that say the opposite: logits of that size, values that far away, embeddings far from their class."""
        if self.kind == EMBEDDINGS:
            return size * self.signs.roll(1, 0)
        return self.signs + size * torch.where(self.signs > 0, -1.0, 1.0) if self.kind == VALUES else -size * self.signs

    def part(self, start: int, stop: int) -> Example:
        """Some of its samples."""
        outputs, targets, signs = (x[start:stop] for x in (self.outputs, self.targets, self.signs))
        return replace(self, outputs=outputs, targets=targets, signs=signs)

    def empty(self) -> Tensor:
        """Targets with nothing in them: no label, only the first class, zeros."""
        if self.kind == SHARES:
            empty = torch.zeros_like(self.targets)
            empty[:, 0] = 1.0
            return empty
        return torch.zeros_like(self.targets)


def make_example(kind: str, *, shape: tuple[int, ...] | None = None, num_samples: int = 8, seed: int = 0) -> Example:
    """An example; the same for the same arguments.

    Args:
        kind: `classes`, `shares`, `labels`, `values`, `masks` (a class at each position; 0 or 1 where there is one output)
            or `embeddings` (of classes).
        shape: of one sample's outputs, classes first.
        num_samples: B.
        seed: of the numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    draw = partial(torch.rand, generator=generator, dtype=torch.float64)
    whole = (num_samples, *(shape or SHAPES[kind]))
    outputs = 4 * draw(whole) - 2
    if kind == VALUES:
        targets = 4 * draw(whole) - 2
        return Example(kind, outputs, targets, targets.clone())
    if kind == LABELS:
        targets = (draw(whole) < 0.5).double()
        if num_samples > 2:  # one that has all, and one that has none
            targets[0], targets[-1] = 1.0, 0.0
        return Example(kind, outputs, targets, 2 * targets - 1)
    if kind in (CLASSES, MASKS) and whole[1] == 1:
        yes = (draw((num_samples, *whole[2:])) < 0.5).long()
        if num_samples > 2 and not whole[2:]:  # both occur, and in both halves
            yes = torch.arange(num_samples) % 2
        return Example(kind, outputs, yes, 2.0 * yes.unsqueeze(1).double() - 1)
    num_classes = whole[1]
    # every class occurs, and more than once in one half of the batch, so that losses of pairs find some
    indices = (draw((num_samples, *whole[2:])) * num_classes).long().clamp_max(num_classes - 1)
    if not whole[2:]:
        indices = torch.arange(num_samples) // 2 % num_classes
    rows = F.one_hot(indices, num_classes).movedim(-1, 1).double()
    if kind == SHARES:
        other = rows.roll(1, 0)
        return Example(kind, outputs, 0.7 * rows + 0.3 * other, 2 * rows - 1)
    return Example(kind, outputs, indices, 2 * rows - 1)
