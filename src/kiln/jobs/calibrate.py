"""`calibrate`: make a model's probabilities true, and let it say that it does not know. Fitted on validation, never test."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kiln.errors import DataError, UsageError
from kiln.jobs.evaluate import samples_of
from kiln.jobs.measure import collect, judge
from kiln.jobs.training.results import read_results, write_results
from kiln.measure.calibration_harm import Harm, calibration_harm
from kiln.metrics import wilson
from kiln.metrics.calibration import METHODS, Method, threshold_for_accuracy, threshold_for_coverage
from kiln.models.modelfile import set_decision
from kiln.observe.outputs import KeptOutputs
from kiln.run import OUTPUTS, RECIPE, Run
from kiln.runtimes import BATCH_SIZE, load, model_path
from kiln.tasks import Task, from_dict
from kiln.tasks.decision import Decision, generalized_entropy

NUM_QUANTILES = 101


@dataclass(frozen=True)
class Wanted:
    """What answers should be like.

    Attributes:
        method: of calibration.
        accuracy: share of answers that should be right; doubtful ones are withheld.
        coverage: share of images that should be answered; at most one of the two.
        max_unfamiliarity: images less familiar than this share of the validation images are not answered.
    """

    method: Method = "temperature"
    accuracy: float | None = None
    coverage: float | None = None
    max_unfamiliarity: float | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UsageError("E101", f"method = {self.method!r}", got=str(self.method), choices=METHODS)
        if self.accuracy is not None and self.coverage is not None:
            what = f"accuracy = {self.accuracy} and coverage = {self.coverage}: one threshold serves one of them"
            raise UsageError("E103", what)
        shares = {"accuracy": self.accuracy, "coverage": self.coverage, "max_unfamiliarity": self.max_unfamiliarity}
        for name, share in shares.items():
            if share is not None and not 0 < share <= (1 if name == "coverage" else 1 - 1e-9):
                raise UsageError("E102", f"{name} = {share}", expected="a share above 0 and below 1")


def fit_decision(task: Task, logits: NDArray[Any], targets: NDArray[Any], wanted: Wanted, *, split: str) -> Decision:
    """Fit how logits become answers.

    Args:
        task: of the model.
        logits: (N, K) of held-out samples, as the model gives them.
        targets: (N, ...).
        wanted: what answers should be like.
        split: what the samples are called, for the record.
    Raises: DataError (E204): these samples cannot show the accuracy that is wanted.
    """
    fit = task.calibrate(logits, targets, method=wanted.method)
    found = Decision(scale=fit.scale, bias=fit.bias)
    probabilities = task.probabilities(found.calibrated(logits))
    sure = task.confidence(probabilities)
    least = None
    if wanted.accuracy is not None:
        least = _least_for_accuracy(sure, task.correct(probabilities, targets), wanted.accuracy, split)
    elif wanted.coverage is not None:
        least = threshold_for_coverage(sure, wanted.coverage)
    quantiles = np.quantile(generalized_entropy(probabilities), np.linspace(0, 1, NUM_QUANTILES))
    return Decision(
        scale=fit.scale,
        bias=fit.bias,
        least_probability=least,
        entropies=tuple(quantiles.tolist()),
        most_unfamiliar=wanted.max_unfamiliarity,
        fitted={
            "method": fit.method,
            "asked_method": wanted.method,
            "split": split,
            "n": fit.n,
            "loss_before": fit.loss_before,
            "loss_after": fit.loss_after,
            "wanted_accuracy": wanted.accuracy,
            "wanted_coverage": wanted.coverage,
        },
    )


def _least_for_accuracy(sure: NDArray[Any], right: NDArray[Any], accuracy: float, split: str) -> float:
    least = threshold_for_accuracy(sure, right, accuracy, at_least=lambda hits, n: wilson(hits, n)[0])
    if least is not None:
        return least
    order = np.argsort(-sure, kind="stable")
    shown = wilson(np.cumsum(right[order]), np.arange(1, len(sure) + 1))[0].max()
    raise DataError(
        "E204",
        f"{len(sure):,} {split} samples cannot show an accuracy of {accuracy:g} at any threshold",
        expected=f"at most {shown:.3f}, the lower end of the 95 % interval of the surest answers",
        hint="a lower accuracy, a coverage instead, or more validation samples",
    )


def calibrate(
    model: str | os.PathLike[str] | Run,
    data: Any = None,
    *,
    wanted: Wanted | None = None,
    split: str = "val",
    device: str = "auto",
    trust: Sequence[str] = (),
    **settings: Any,
) -> dict[str, Any]:
    """Fit how a model's outputs become answers, and write that into its model file.

    Args:
        model: a run, its folder, or a model file.
        data: labelled images for a model file without a run; a run has its own validation samples.
        wanted: what answers should be like.
        split: of the data to fit on; `test` is refused.
        device: where to compute, if anything must be.
        trust: code that the model file may name.
        **settings: fields of `Wanted` by name.
    Returns: `decision`, `metrics` of each split before and after, where the run kept its outputs, and `harm`: what got
        worse on test, or None.
    Raises: UsageError: test data, or settings that contradict each other. DataError: see `fit_decision`.
    """
    wanted = wanted or Wanted(**settings)
    if split == "test":
        hint = "--split val, or a labelled set of its own"
        raise UsageError("E103", "what is fitted on test can no longer be tested on it", hint=hint)
    folder = model.path if isinstance(model, Run) else Path(model)
    file = model_path(folder)
    if file.suffix.lower() == ".onnx":
        raise UsageError("E103", f"{file} is an export", hint="calibrate the model that it was made from, then export")
    is_run = (folder / RECIPE).is_file()
    if data is None and is_run and (folder / OUTPUTS).is_file():
        return _of_run(Run(folder), wanted)
    predictor = load(folder, device=device, trust=trust)
    again = f"kiln calibrate {shlex.quote(str(folder))} DATA"
    source, indices, targets, _ = samples_of(predictor, folder, data, split=split, again=again)
    said, _ = collect(
        predictor, source, indices, targets, split=split, batch_size=BATCH_SIZE, skip_bad=False, workers=4
    )
    decision = fit_decision(predictor.task, said.logits, said.targets, wanted, split=split)
    digest = set_decision(file, decision.to_dict())
    before = judge(predictor.task, predictor.classes, predictor.decision, said)
    after = judge(predictor.task, predictor.classes, decision, said)
    measured = {split: {"before": before.plain_metrics(), "after": after.plain_metrics(), **_answers(after.details)}}
    return {"model": str(file), "digest": digest, "decision": decision.to_dict(), "metrics": measured, "harm": None}


def _answers(details: Mapping[str, Any]) -> dict[str, Any]:
    return {"answers": details["answers"]} if "answers" in details else {}


def _of_run(run: Run, wanted: Wanted) -> dict[str, Any]:
    """From the outputs that the run kept, without the images; its results are then of the calibrated model."""
    kept: KeptOutputs = run.outputs()
    if "val" not in kept.splits:
        raise DataError("E204", f"{run.path} had nothing to validate on", hint="kiln calibrate RUN DATA")
    task, held = from_dict(kept.task), kept.splits["val"]
    decision = fit_decision(task, held.logits, held.targets, wanted, split="val")
    before, after = (
        {name: judge(task, kept.classes, how, part) for name, part in kept.splits.items()}
        for how in (Decision(), decision)
    )
    digest = set_decision(run.model_file, decision.to_dict())
    changed = KeptOutputs(kept.classes, kept.task, decision.to_dict(), digest, kept.splits)
    write_results(run.path, changed, after, read_results(run.path))
    measured = {
        name: {"before": before[name].plain_metrics(), "after": found.plain_metrics(), **_answers(found.details)}
        for name, found in after.items()
    }
    harm = _harm(task, kept, decision)
    return {
        "model": str(run.model_file),
        "digest": digest,
        "decision": decision.to_dict(),
        "metrics": measured,
        "harm": None if harm is None else asdict(harm),
    }


def _harm(task: Task, kept: KeptOutputs, decision: Decision) -> Harm | None:
    """What got worse on test, if there are outputs of it."""
    part = kept.splits.get("test")
    if part is None:
        return None
    groups = None if part.groups is None else np.array(part.groups)
    return calibration_harm(task, part.logits, part.targets, decision, classes=kept.classes, groups=groups)
