"""`soup`: the weights of several models averaged into one, which costs no more than any of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from kiln.errors import DataError, UsageError
from kiln.jobs.together.averaging import Average, Averaging
from kiln.jobs.together.blend import plain_metrics
from kiln.jobs.together.candidates import common_samples, open_candidates
from kiln.language import tr
from kiln.models.modelfile import save_model
from kiln.runtimes import MODEL_NAME

Method = Literal["greedy", "uniform"]
METHODS: tuple[Method, ...] = ("greedy", "uniform")


def soup(
    *models: Any,
    output: str | os.PathLike[str] | None = None,
    method: Method = "greedy",
    data: Any = None,
    metric: str | None = None,
    device: str = "auto",
    trust: Sequence[str] = (),
) -> dict[str, Any]:
    """Average the weights of several runs that were fine-tuned from one start.

    `greedy` begins with the model that is best on validation and takes in one after the other, in the order of their
    metric, where on validation neither the metric nor the log likelihood falls; so it is never below its best member
    there. `uniform` takes all. Running statistics of normalisation are measured again over training images, and every
    comparison is of the model as it would ship.

    Args:
        *models: runs or model files of one architecture.
        output: the model file to write, or a folder for it; by default `soup` beside the first model.
        method: `greedy` or `uniform`.
        data: labelled images to choose on, in place of the runs' own.
        metric: what to compare on validation; the task's own by default.
        device: where to compute.
        trust: code that the model files may name.
    Returns: `model` (the file), `method`, `metric`, `members` (metrics of each, and whether it is `taken`), `metrics` by
        split, `gain` on test over the best member with its 95 % interval (None where no average was taken), `notes`.
    Raises: UsageError: an unknown method or metric. ArtifactError (E304): models of different architectures. DataError:
        no validation samples that all of them held out.
    """
    if method not in METHODS:
        raise UsageError("E101", f"method = {method!r}", got=str(method), choices=METHODS)
    candidates = open_candidates(models, device=device, trust=trust)
    target = _target(candidates[0].place.parent / "soup" if output is None else Path(output))
    common, notes = common_samples(candidates, data)
    making = Averaging(candidates, common, metric, data=data, device=device, trust=trust)
    if "val" not in common:
        if method == "greedy":
            what = "no validation samples that all models held out, to choose by"
            raise DataError("E204", what, hint="--data LABELLED, or --method uniform", details=notes)
        notes.append(tr("no validation samples that all models held out: the soup was not compared with its members"))
    ranked = making.ranked()
    best = making.alone(ranked[0])
    made = making.greedy(ranked) if method == "greedy" else making.of(ranked)
    notes += making.notes
    found = {
        "method": method,
        "metric": making.metric,
        "statistics": making.statistics if len(made.rows) > 1 else "its own",
        "members": [
            {
                "model": str(one.place),
                "digest": one.predictor.digest,
                "taken": row in made.rows,
                "metrics": {
                    split: plain_metrics(making.measured(held.logits[row], split)) for split, held in common.items()
                },
            }
            for row, one in enumerate(candidates)
        ],
        "metrics": {split: plain_metrics(making.measured(making.calibrated(made, split), split)) for split in common},
        "gain": making.gain(made, ranked[0]) if len(made.rows) > 1 else None,
    }
    if making.score(made.logits) < making.score(best.logits):
        notes.append(tr("on validation this soup is below its best member; --method greedy never is"))
    if len(made.rows) == 1:
        alone = str(candidates[ranked[0]].place)
        told = "no average was taken: none was as good as {model} alone, which is what was written"
        notes.append(tr(told, model=alone))
    elif found["gain"] is None:
        notes.append(tr("no test samples that all models held out: nothing is claimed of a gain"))
    _write(target, made, {key: found[key] for key in ("method", "metric", "statistics", "members")})
    return {"model": str(target), **found, "notes": notes}


def _write(target: Path, made: Average, about: dict[str, Any]) -> None:
    file = made.file
    save_model(
        target,
        file.model,
        spec=file.spec,
        classes=file.classes,
        contract=file.contract,
        task=file.task,
        extra={"soup": about},
        decision=made.decision.to_dict(),
    )


def _target(output: Path) -> Path:
    target = output if output.suffix == ".safetensors" else output / MODEL_NAME
    if target.exists():
        raise UsageError("E105", f"{target} is there already", hint="another --output")
    return target
