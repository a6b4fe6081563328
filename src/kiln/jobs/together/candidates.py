"""What several models say of the same held-out samples: the ground on which they are put together."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kiln.data.storage import counted
from kiln.errors import DataError, UsageError
from kiln.jobs.evaluate import samples_of
from kiln.jobs.measure import collect
from kiln.observe.outputs import SplitOutputs
from kiln.run import FOLDS, OUTPUTS, RECIPE, Run, read_json
from kiln.runtimes import BATCH_SIZE, Predictor, load, model_path
from kiln.runtimes.ensemble import columns

HELD_OUT = ("val", "test")


@dataclass(frozen=True)
class Candidate:
    """A model that may become part of something larger.

    Attributes:
        place: its run folder or file.
        file: the model file.
        predictor: the model, opened.
    """

    place: Path
    file: Path
    predictor: Predictor


def open_candidates(models: Iterable[Any], *, device: str, trust: Sequence[str]) -> list[Candidate]:
    """Open runs, model files, or the folder that `kiln train --folds` left.

    Raises:
        UsageError: fewer than two, or the same twice.
        DataError: they do not look at images in one way, or do not tell one set of classes apart.
    """
    places = [part for model in models for part in _parts(Path(getattr(model, "path", model)))]
    files = [model_path(place) for place in places]
    if len({os.path.realpath(file) for file in files}) < len(files) or len(files) < 2:
        listed = ", ".join(map(str, places)) or "none"
        raise UsageError("E103", f"models = {listed}", expected="at least two different runs or model files")
    found = [
        Candidate(place, file, load(file, device=device, trust=trust))
        for place, file in zip(places, files, strict=True)
    ]
    first = found[0]
    for other in found[1:]:
        _check_alike(first, other)
    return found


def _parts(place: Path) -> list[Path]:
    if not (place / FOLDS).is_file():
        return [place]
    return [place / name for name in read_json(place / FOLDS, kind="folds")["runs"]]


def _check_alike(first: Candidate, other: Candidate) -> None:
    if first.predictor.runtime.task != other.predictor.runtime.task:
        what = f"{first.place} and {other.place} were trained for different tasks"
        raise DataError("E204", what, expected="models of one task")
    names = (str(other.place), str(first.place))
    columns(other.predictor.classes, first.predictor.classes, names=names)
    ways = first.predictor.contract.to_dict(), other.predictor.contract.to_dict()
    if odd := [f"{name}: {value!r} and {ways[1][name]!r}" for name, value in ways[0].items() if value != ways[1][name]]:
        what = f"{first.place} and {other.place} do not take the same pixels: {', '.join(odd)}"
        raise DataError("E204", what, expected="models of one size and preprocessing", hint="--img-size at training")


@dataclass(frozen=True)
class Common:
    """Samples that all models held out, and what each said of them.

    Attributes:
        keys: of the samples.
        logits: (M, N, K) calibrated, in the order of the first model's classes.
        targets: (N, ...) in that order too.
        groups: (N,) numbers from 0, where the data have groups.
    """

    keys: tuple[str, ...]
    logits: NDArray[np.float64]
    targets: NDArray[Any]
    groups: NDArray[np.int64] | None


def common_samples(
    candidates: Sequence[Candidate], data: Any, *, workers: int | None = None
) -> tuple[dict[str, Common], list[str]]:
    """What the models say of the samples that none of them was trained on, `val` and `test`.

    A run's kept outputs are taken where they are those of its model file; otherwise the model is asked. Only samples that
    every run put into the same split count, so that no model is asked about what it was trained on.

    Args:
        candidates: the models.
        data: labelled images; None takes those of the runs. Without splits of their own they are all validation.
        workers: threads that decode.
    Returns: by split, where there are such samples; and what to tell.
    Raises: DataError: two runs give a sample different labels, or the data cannot be read.
    """
    found: dict[str, Common] = {}
    notes: list[str] = []
    for split in HELD_OUT:
        said = [said_of(one, data, split, workers=workers, notes=notes) for one in candidates]
        parts = [part for part in said if part is not None]
        if len(parts) < len(said):
            continue
        everywhere = set(parts[0].keys).intersection(*(part.keys for part in parts[1:]))
        keys = tuple(key for key in parts[0].keys if key in everywhere)
        if len(keys) < max(len(part.keys) for part in parts):
            what = (
                f"{counted(len(keys), f'{split} sample')} held out by all models, {len(parts[0].keys):,} by the first"
            )
            notes.append(f"{what}: other seeds and folds hold out others, unless the data have a folder for them")
        if keys and not (split == "test" and "val" in found and everywhere & set(found["val"].keys)):
            found[split] = _stacked(parts, candidates, keys)
    return found, list(dict.fromkeys(notes))


def said_of(
    one: Candidate, data: Any, split: str, *, workers: int | None = None, notes: list[str]
) -> SplitOutputs | None:
    """Logits of a split, as the network gives them; None where there is no such split. `notes` grows by what to tell."""
    is_run = (one.place / RECIPE).is_file()
    if data is None and not is_run:
        raise UsageError("E103", f"{one.place} is no run, and knows no data", hint="name labelled data with --data")
    if data is None and (one.place / OUTPUTS).is_file():
        kept = Run(one.place).outputs()
        if kept.model == one.predictor.digest:
            return kept.splits.get(split)
    try:
        source, indices, targets, more = samples_of(one.predictor, one.place, data, split=split, again="--data DATA")
    except DataError as error:
        if error.code != "E204":
            raise
        return None
    notes += more
    workers = min(os.cpu_count() or 1, 8) if workers is None else workers
    said, _ = collect(
        one.predictor, source, indices, targets, split=split, batch_size=BATCH_SIZE, skip_bad=False, workers=workers
    )
    return said


def _stacked(parts: Sequence[SplitOutputs], candidates: Sequence[Candidate], keys: tuple[str, ...]) -> Common:
    first, task = candidates[0], candidates[0].predictor.task
    width = task.num_outputs(first.predictor.classes)
    logits, truth = [], None
    for part, one in zip(parts, candidates, strict=True):
        row_of = {key: row for row, key in enumerate(part.keys)}
        rows = [row_of[key] for key in keys]
        names = (str(one.place), str(first.place))
        order = columns(one.predictor.classes, first.predictor.classes, names=names)
        logits.append(one.predictor.decision.calibrated(part.logits[rows])[:, order])
        labels = task.true_labels(part.targets[rows], width)[:, order]
        if truth is not None and not np.array_equal(labels, truth):
            what = f"{first.place} and {one.place} know different labels of the same samples"
            raise DataError("E204", what, hint="name the data that are right with --data")
        truth = labels
    own = {key: row for row, key in enumerate(parts[0].keys)}
    rows = [own[key] for key in keys]
    groups = parts[0].groups
    numbers = None if groups is None else np.unique([groups[row] for row in rows], return_inverse=True)[1]
    return Common(keys, np.stack(logits), parts[0].targets[rows], numbers)
