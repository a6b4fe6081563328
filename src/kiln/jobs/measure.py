"""Measuring a model on labelled samples, the same way at the end of training and ever after."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kiln.data.collate import pad
from kiln.data.images import ContractImages
from kiln.data.loader import Assembler, BadFiles, evaluation_batches
from kiln.data.source import Source
from kiln.engine.evaluate import Outputs, collect_outputs
from kiln.errors import DataError, UsageError
from kiln.metrics import Metric
from kiln.models.outputs import main_and_auxiliary
from kiln.observe.records import plain
from kiln.runtimes import Predictor
from kiln.tasks import Task


@dataclass(frozen=True)
class Measured:
    """What a model reached on some samples: metrics with intervals, details per class, and every output.

    `bad_files` are those left out: key, split, reason and detail of each.
    """

    metrics: dict[str, Metric]
    details: dict[str, Any]
    outputs: Outputs
    bad_files: list[tuple[str, str, str, str]]

    @property
    def skipped(self) -> int:
        """How many samples could not be read, and are in no number."""
        return len(self.bad_files)

    def to_dict(self) -> dict[str, Any]:
        """Plain values: each metric by name with its value, `intervals` beside them."""
        first = next(iter(self.metrics.values()))
        return {
            **{name: metric.value for name, metric in self.metrics.items()},
            "intervals": {name: [metric.low, metric.high] for name, metric in self.metrics.items()},
            "n": first.n,
            "skipped": self.skipped,
            "bad_files": [
                {"key": key, "reason": reason, "detail": detail} for key, _, reason, detail in self.bad_files
            ],
            **self.details,
        }

    def plain_metrics(self) -> dict[str, Any]:
        """Each metric as value, low, high and n."""
        return {name: plain(metric) for name, metric in self.metrics.items()}


def measure(
    predictor: Predictor,
    source: Source,
    indices: NDArray[Any],
    targets: NDArray[Any],
    *,
    split: str,
    batch_size: int,
    skip_bad: bool,
    workers: int,
) -> Measured:
    """Run a predictor over samples and compare with their targets.

    Args:
        predictor: the model.
        source: where the samples are.
        indices: which of them.
        targets: (len(source), ...) in the order of the predictor's classes.
        split: their name in messages.
        batch_size: images per forward pass; the same number gives the same digits.
        skip_bad: leave unreadable files out and count them, instead of stopping.
        workers: threads that decode.
    Raises: DataError: a file cannot be read, or none can.
    """
    bad_files = BadFiles(source.keys)
    images = ContractImages(source, predictor.contract)
    batches = evaluation_batches(
        Assembler(images, targets, pad if predictor.contract.resize == "keep" else None),
        indices,
        batch_size=batch_size,
        bad_files=bad_files,
        split=split,
        skip_bad=skip_bad,
        workers=workers,
    )
    outputs = collect_outputs(_forward(predictor, source.transformed), batches, device=torch.device("cpu"))
    if outputs is None:
        raise DataError("E204", f"no {split} sample to measure on", where=source.where)
    task: Task = predictor.task
    return Measured(
        metrics=task.metrics(outputs.logits, outputs.targets, predictor.classes),
        details=task.details(outputs.logits, outputs.targets, predictor.classes),
        outputs=outputs,
        bad_files=bad_files.rows(),
    )


def _forward(predictor: Predictor, transformed: bool) -> Callable[..., Tensor]:
    if not transformed:
        return lambda images, mask=None: torch.from_numpy(predictor.logits(images.numpy(), _sizes(mask)))
    model = getattr(predictor.runtime, "model", None)
    if model is None:
        raise UsageError("E103", f"runtime {predictor.runtime.name} takes images, and these data come transformed")
    device = next(model.parameters()).device
    return lambda images: main_and_auxiliary(model(images.to(device)))[0]


def _sizes(mask: Tensor | None) -> NDArray[np.int64] | None:
    """(B, 2): height and width of what a mask (B, H, W) leaves in."""
    return None if mask is None else torch.stack([mask[:, :, 0].sum(1), mask[:, 0].sum(1)], dim=1).numpy()
