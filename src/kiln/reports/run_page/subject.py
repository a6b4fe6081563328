"""What a report is about: one held-out split, what the model said of it, and what is true."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kiln.observe.outputs import KeptOutputs
from kiln.tasks import from_dict

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Subject:
    """One split's samples.

    Attributes:
        split: its name.
        classes: names, in the order of the outputs.
        keys: of the samples.
        labels: as the data write them.
        groups: of the samples, where the data have groups.
        probabilities: (N, K), calibrated.
        raw: (N, K), as they were before calibration.
        given: (N, K) the labels that the model gives.
        true: (N, K) the labels that are so.
        right: (N,) whether a sample's answer is right in full.
        sure: (N,) how sure each answer is.
        raw_sure: (N,) the same before calibration.
        one_label: whether each sample has exactly one label.
    """

    split: str
    classes: tuple[str, ...]
    keys: tuple[str, ...]
    labels: tuple[str, ...]
    groups: tuple[str, ...] | None
    probabilities: Floats
    raw: Floats
    given: Flags
    true: Flags
    right: Flags
    sure: Floats
    raw_sure: Floats
    one_label: bool

    def __len__(self) -> int:
        return len(self.keys)

    def told(self, index: int) -> str:
        """The labels that the model gives to a sample, in words."""
        return ", ".join(name for name, yes in zip(self.classes, self.given[index], strict=True) if yes) or "-"

    def true_label(self, index: int) -> str:
        """The labels that are so."""
        return ", ".join(name for name, yes in zip(self.classes, self.true[index], strict=True) if yes) or "-"

    def answers(self, *, raw: bool = False) -> tuple[Floats, Flags]:
        """Every answer's probability and whether it was so: the likeliest class, or each label of each sample."""
        if self.one_label:
            return (self.raw_sure if raw else self.sure), self.right
        return (self.raw if raw else self.probabilities).ravel(), self.true.ravel()

    def doubt(self) -> Floats:
        """(N,) how strongly the model contradicts a sample's label: from 0, agreeing, to 1."""
        if self.one_label:
            own = np.where(self.true, self.probabilities, 0.0).sum(axis=1)
            return np.where(self.right, 0.0, np.maximum(self.sure - own, 0.0))
        return np.abs(self.probabilities - self.true).max(axis=1)

    def difficulty(self) -> Floats:
        """(N,) log loss: what the true label costs the model."""
        so = np.where(self.true, self.probabilities, 1.0 - self.probabilities)
        if self.one_label:
            so = np.where(self.true, self.probabilities, 1.0)
        return -np.log(np.maximum(so, 1e-12)).sum(axis=1) / (1 if self.one_label else len(self.classes))


def subject_of(kept: KeptOutputs, split: str) -> Subject:
    """What was kept of a split."""
    task, part = from_dict(kept.task), kept.splits[split]
    targets: NDArray[Any] = np.asarray(part.targets)
    probabilities, raw = kept.probabilities(split), task.probabilities(part.logits)
    return Subject(
        split,
        kept.classes,
        part.keys,
        part.labels,
        part.groups,
        probabilities,
        raw,
        task.given_labels(probabilities),
        task.true_labels(targets, probabilities.shape[1]).astype(bool),
        task.correct(probabilities, targets),
        task.confidence(probabilities),
        task.confidence(raw),
        one_label=targets.ndim == 1,
    )
