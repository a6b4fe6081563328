"""Measuring a model on labelled samples, the same way at the end of training and ever after."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from kiln.metrics import Metric, wilson
from kiln.models.outputs import main_and_auxiliary
from kiln.observe.outputs import SplitOutputs
from kiln.observe.records import plain
from kiln.runtimes import Predictor
from kiln.tasks import Task
from kiln.tasks.decision import Decision

BadRows = Sequence[tuple[str, str, str, str]]


@dataclass(frozen=True)
class Measured:
    """What a model reached on some samples: metrics with intervals, and details per class.

    `bad_files` are those left out: key, split, reason and detail of each.
    """

    metrics: dict[str, Metric]
    details: dict[str, Any]
    bad_files: BadRows

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


def collect(
    predictor: Predictor,
    source: Source,
    indices: NDArray[Any],
    targets: NDArray[Any],
    *,
    split: str,
    batch_size: int,
    skip_bad: bool,
    workers: int,
) -> tuple[SplitOutputs, BadRows]:
    """What a predictor says of samples, as its network gives it.

    Args:
        predictor: the model.
        source: where the samples are.
        indices: which of them.
        targets: (len(source), ...) in the order of the predictor's classes.
        split: their name in messages.
        batch_size: images per forward pass; the same number gives the same digits.
        skip_bad: leave unreadable files out and count them, instead of stopping.
        workers: threads that decode.
    Returns: the outputs in the order of the source, and the files that were left out.
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
    return _named(outputs, source), bad_files.rows()


def _named(outputs: Outputs, source: Source) -> SplitOutputs:
    def of(values: Any) -> tuple[str, ...]:
        return tuple(values[index] for index in outputs.indices.tolist())

    labels = of(source.labels) if source.labels is not None else ("",) * len(outputs.indices)
    groups = of(source.groups) if source.groups is not None else None
    return SplitOutputs(of(source.keys), labels, outputs.logits, outputs.targets, groups)


def judge(
    task: Task,
    classes: tuple[str, ...],
    decision: Decision,
    said: SplitOutputs,
    *,
    bad_files: BadRows = (),
    further: Sequence[str] = (),
) -> Measured:
    """Compare what was said with the truth, as the model would ship: calibrated, and perhaps without some answers.

    Args:
        task: of the model.
        classes: of the model.
        decision: of the model.
        said: what its network said.
        bad_files: what was left out.
        further: metrics of the user's own, besides all that there are.
    """
    groups = None if said.groups is None else np.array(said.groups)
    logits = decision.calibrated(said.logits)
    details = task.details(logits, said.targets, classes)
    if decision.least_probability is not None or decision.most_unfamiliar is not None:
        details["answers"] = answers(task, decision, said)
    metrics = task.metrics(logits, said.targets, classes, names=("all", *further), groups=groups)
    return Measured(metrics, details, list(bad_files))


def answers(task: Task, decision: Decision, said: SplitOutputs) -> dict[str, Any]:
    """How many samples are answered, and how many of those answers are right, each with its 95 % interval."""
    probabilities = task.probabilities(decision.calibrated(said.logits))
    refused = decision.refusals(task.confidence(probabilities), decision.unfamiliarity(probabilities))
    given = np.array([not reason for reason in refused])
    right = task.correct(probabilities, said.targets)
    found: dict[str, Any] = {"refused": {reason: refused.count(reason) for reason in sorted(set(refused) - {""})}}
    for name, hits, n in (("coverage", given.sum(), len(given)), ("accuracy", (given & right).sum(), given.sum())):
        low, high = wilson(hits, n)
        value = float(hits / n) if n else None
        found[name] = {"value": value, "low": float(low), "high": float(high), "n": int(n)}
    return found


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
