"""`ensemble`: several models that answer together, their weights chosen on validation and never on test."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from kiln.errors import ArtifactError, DataError, UsageError
from kiln.jobs.evaluate import samples_of
from kiln.jobs.measure import collect
from kiln.jobs.together.blend import Blend, Weights, plain_metrics
from kiln.jobs.together.candidates import Candidate, common_samples, open_candidates
from kiln.language import tr
from kiln.models.ensemblefile import ENSEMBLE, EnsembleFile, Member, write_ensemble
from kiln.models.seal import verify_seal
from kiln.run import writing
from kiln.runtimes import BATCH_SIZE, Predictor, load

MEMBERS = "members"
CLOSENESS = 1e-3
"""What a logit may differ between the ensemble that was measured and the one that was written."""


def ensemble(
    *models: Any,
    output: str | os.PathLike[str] | None = None,
    data: Any = None,
    metric: str | None = None,
    link: bool = False,
    device: str = "auto",
    trust: Sequence[str] = (),
) -> dict[str, Any]:
    """Let several models answer together, each with a weight.

    Their answer is the weighted mean of their calibrated probabilities. Four choices of weights are compared on the
    validation samples that all of them held out: the best model alone, all alike, those that make the truth likeliest
    (fitted), and those of greedy selection. The best one is kept, so that the ensemble is never below its best member
    there. Without such samples, as for folds, all weigh alike.

    Args:
        *models: runs, model files, or the folder of folds; of one task, the same classes and pixel contract.
        output: the folder to write; by default `ensemble` beside the first model.
        data: labelled images to choose on, in place of the runs' own.
        metric: what to compare on validation; the task's own by default.
        link: give the members' files a second name in the folder, instead of copying them.
        device: where to compute.
        trust: code that the model files may name.
    Returns: `ensemble`, `kept`, `metric`, `candidates` (the metric of each choice of weights), `members` (weight and
        metrics of each), `metrics` by split, `gain` on test over the best member with its 95 % interval, `notes`.
    Raises: UsageError: fewer than two models, an unknown metric, or a folder that holds an ensemble. DataError: models
        that do not go together.
    """
    candidates = open_candidates(models, device=device, trust=trust)
    folder = candidates[0].place.parent / "ensemble" if output is None else Path(output)
    if (folder / ENSEMBLE).exists():
        raise UsageError("E105", f"{folder} holds an ensemble already", hint="another --output")
    common, notes = common_samples(candidates, data)
    blend = Blend(candidates, common, metric)
    notes += blend.notes
    found: dict[str, Any] = {
        "kept": blend.kept,
        "metric": blend.metric,
        "candidates": blend.scores,
        "members": [
            {"model": str(one.place), "weight": weight, "metrics": blend.of_member(number)}
            for number, (one, weight) in enumerate(zip(candidates, blend.weights.tolist(), strict=True))
        ],
        "metrics": {split: plain_metrics(blend.measured(split)) for split in common},
        "gain": blend.gain(data),
    }
    if found["gain"] is None:
        notes.append(tr("no test samples that all models held out: nothing is claimed of a gain"))
    members = _put_members(folder, candidates, blend.weights, link=link, notes=notes)
    first = candidates[0].predictor
    description = EnsembleFile(
        first.classes, first.contract, dict(first.runtime.task), members, blend.decision.to_dict(), found
    )
    write_ensemble(folder / ENSEMBLE, description)
    written = load(folder, device=device, trust=trust)
    try:
        _compare_with_members(written, candidates[0], blend, data, notes=notes)
    except ArtifactError:
        (folder / ENSEMBLE).unlink()
        raise
    return {"ensemble": str(folder), **found, "notes": notes}


def _put_members(
    folder: Path, candidates: Sequence[Candidate], weights: Weights, *, link: bool, notes: list[str]
) -> tuple[Member, ...]:
    """Copy or link the files of the members that have a weight."""
    members = []
    with writing(folder / MEMBERS):
        (folder / MEMBERS).mkdir(parents=True, exist_ok=True)
        for number, (one, weight) in enumerate(zip(candidates, weights.tolist(), strict=True), 1):
            if weight == 0:
                continue
            name = re.sub(r"[^A-Za-z0-9_-]+", "-", one.place.stem).strip("-") or "model"
            target = folder / MEMBERS / f"{number}-{name}{one.file.suffix}"
            target.unlink(missing_ok=True)
            _put(one.file, target, link=link, notes=notes)
            members.append(Member(f"{MEMBERS}/{target.name}", verify_seal(target), weight, str(one.place)))
    return tuple(members)


def _put(file: Path, target: Path, *, link: bool, notes: list[str]) -> None:
    if link:
        with suppress(OSError):
            os.link(file.resolve(), target)
            return
        notes.append(tr("{file} cannot be linked from there, and was copied", file=str(file)))
    shutil.copyfile(file, target)


def _compare_with_members(written: Predictor, first: Candidate, blend: Blend, data: Any, *, notes: list[str]) -> None:
    """Hold that the ensemble on disk says what was measured, on a batch of images."""
    for split, held in blend.common.items():
        try:
            source, _, targets, _ = samples_of(first.predictor, first.place, data, split=split)
        except DataError as error:
            notes.append(tr("the ensemble was not tried on images: {why}", why=error.what))
            return
        row_of = {key: row for row, key in enumerate(held.keys[:BATCH_SIZE])}
        indices = np.array([index for index, key in enumerate(source.keys) if key in row_of], np.int64)
        if len(indices) == 0:
            continue
        said, _ = collect(
            written, source, indices, targets, split=split, batch_size=BATCH_SIZE, skip_bad=True, workers=0
        )
        measured = blend.pooled(blend.weights, split)[[row_of[key] for key in said.keys]]
        if not np.allclose(said.logits, measured, rtol=CLOSENESS, atol=CLOSENESS):
            what = f"the ensemble does not say what was measured: {np.abs(said.logits - measured).max():.2g} apart"
            raise ArtifactError("E305", what, hint="kiln evaluate RUN for each member, then again")
        return
