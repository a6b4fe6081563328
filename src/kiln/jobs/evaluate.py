"""`evaluate`: measure a run, a model file or an exported model on labelled data."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kiln.data.fingerprint import compare_fingerprint, record
from kiln.data.source import Source, open_source
from kiln.data.split import read_split_csv
from kiln.data.storage import counted, shown
from kiln.errors import DataError, UsageError
from kiln.jobs.intake import open_recipe_source
from kiln.jobs.measure import collect, judge
from kiln.run import RECIPE, SPLIT, Run, write_atomically
from kiln.runtimes import BATCH_SIZE, Predictor, load
from kiln.runtimes.views import view_names
from kiln.tasks.labels import is_integer

SPLITS = ("train", "val", "test", "all")
BAD_FILES = ("error", "skip")


def evaluate(
    model: str | os.PathLike[str] | Run,
    data: Any = None,
    *,
    split: str = "test",
    batch_size: int | None = None,
    workers: int | None = None,
    device: str = "auto",
    bad_files: str = "error",
    runtime: str = "auto",
    trust: Sequence[str] = (),
    tta: str | Sequence[str] = "none",
    output: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """Measure a model on labelled images, each number with its 95 % interval.

    Classes are matched by name. A run remembers how it split its data, so `val` means the samples it validated on, also
    where they were cut from one folder, and also in a copy of the data; other data have the splits that they have, or
    none, and are then measured as a whole.

    Args:
        model: a run folder, a model file, an `.onnx`, or a `Run`.
        data: labelled images as for `kiln.train`; None takes what the run was trained on.
        split: `train`, `val`, `test` or `all`.
        batch_size: images per forward pass; the default repeats training's own numbers to the last digit.
        workers: threads that decode.
        device: where to compute.
        bad_files: `error` stops at an unreadable file, `skip` leaves it out and counts it.
        runtime: `auto`, `torch` or `onnx`.
        trust: code that the model file may name.
        tta: views of each image whose probabilities are averaged; `views` of `kiln.load`.
        output: also write the result there, as JSON.
    Returns: metrics by name, `intervals`, `n`, `skipped`, `per_class`, `confusion`, `views` of each image, `notes`.
    Raises: DataError: classes that the model does not know, an unreadable file, an empty split.
    """
    if split not in SPLITS:
        raise UsageError("E101", f"unknown split {split!r}", got=split, choices=SPLITS)
    if bad_files not in BAD_FILES:
        raise UsageError("E101", f"bad_files = {bad_files!r}", got=bad_files, choices=BAD_FILES)
    path = model.path if isinstance(model, Run) else Path(model)
    predictor = load(path, device=device, runtime=runtime, trust=trust, views=tta)
    source, indices, targets, notes = samples_of(predictor, path, data, split=split)
    said, left_out = collect(
        predictor,
        source,
        indices,
        targets,
        split=split,
        batch_size=batch_size or BATCH_SIZE,
        skip_bad=bad_files == "skip",
        workers=_workers(workers),
    )
    measured = judge(predictor.task, predictor.classes, predictor.decision, said, bad_files=left_out)
    result = {
        "model": str(path),
        "data": source.where,
        "split": split,
        "views": [] if tta == "none" else list(view_names(tta)),
        **measured.to_dict(),
        "notes": notes,
    }
    if output is not None:
        write_atomically(Path(output), json.dumps(result, indent=1).encode())
    return result


def samples_of(
    predictor: Predictor, path: Path, data: Any, *, split: str, again: str = ""
) -> tuple[Source, NDArray[np.int64], NDArray[Any], list[str]]:
    """Labelled samples for a model: of the run that it came from, or of other data.

    Args:
        predictor: the model.
        path: of its run or file.
        data: as for `evaluate`.
        split: one of `SPLITS`.
        again: the command that names data, where they are wanted; `kiln evaluate` by default.
    Returns: the source, which of its samples, targets for all of them, and what to tell.
    Raises: as `evaluate`.
    """
    run = Run(path) if (path / RECIPE).is_file() else None
    source, notes = _source(path, run, data, again or f"kiln evaluate {shlex.quote(str(path))} DATA")
    names, name_notes = _names(predictor, source)
    targets = predictor.task.encode(source.labels or (), predictor.classes, given=names)
    indices, split_notes = _indices(run, source, split)
    absent = _absent_classes(predictor, source, indices, names)
    return source, indices, targets, [*notes, *name_notes, *split_notes, *absent]


def _workers(asked: int | None) -> int:
    return min(os.cpu_count() or 1, 8) if asked is None else asked


def _source(path: Path, run: Run | None, data: Any, again: str) -> tuple[Source, list[str]]:
    """The data, and how they differ from what the run recorded."""
    if run is None:
        if data is None:
            raise UsageError("E103", f"no data: {path} is no run, and knows none", hint=again)
        return open_source(data), []
    recipe, hint = run.recipe, f"{again}, if it lies elsewhere now"
    if data is None and recipe.data.path is None:
        raise UsageError("E103", "the run was trained on objects, which it cannot open again", hint="name the data")
    if data is not None and not (recipe.data.path is not None and _same_place(data, recipe.data.path)):
        return open_source(data), []
    source = open_recipe_source(recipe, None, moved=hint)
    return source, [
        f"the data changed since training: {line}" for line in compare_fingerprint(_trained_on(run), source)
    ]


def _trained_on(run: Run) -> dict[str, Any]:
    return run.resolved["facts"]["data"]


def _same_place(a: Any, b: str) -> bool:
    return isinstance(a, str | os.PathLike) and os.path.realpath(a) == os.path.realpath(b)


def _names(predictor: Predictor, source: Source) -> tuple[tuple[str, ...] | None, list[str]]:
    """What the data's labels mean: names as they stand, or indices into the data's own list, or into the model's."""
    if source.labels is None:
        raise DataError(
            "E204", f"{source.where} has no labels to compare with", hint="kiln predict names their classes"
        )
    found = predictor.task.occurring(source.labels, source.class_names)
    if source.class_names or not all(map(is_integer, found)) or any(map(is_integer, predictor.classes)):
        return source.class_names, []
    return predictor.classes, [f"labels are numbers, read as the model's classes from 0: {shown(predictor.classes)}"]


def _absent_classes(
    predictor: Predictor, source: Source, indices: NDArray[np.int64], names: tuple[str, ...] | None
) -> list[str]:
    labels = [source.labels[int(index)] for index in indices] if source.labels is not None else []
    absent = sorted(set(predictor.classes) - predictor.task.occurring(labels, names))
    return [f"{counted(len(absent), 'class')} of the model without a sample here: {shown(absent)}"] if absent else []


def _indices(run: Run | None, source: Source, split: str) -> tuple[NDArray[np.int64], list[str]]:
    """The samples of a split: by the run's record where these are its data, by the data's own splits, or everything."""
    everything = np.arange(len(source), dtype=np.int64)
    recorded = read_split_csv(run.path / SPLIT) if run is not None and (run.path / SPLIT).is_file() else {}
    sides = [recorded[key].split if key in recorded else None for key in source.keys]
    if split == "all":
        return everything, []
    if run is not None and recorded and _are_its_data(run, source):
        notes = [f"{counted(sides.count(None), 'sample')} new since training and in no split"] if None in sides else []
    elif source.splits is not None:
        notes, sides = [], list(source.splits)
    else:
        notes = [f"the data have no splits: measured on {counted(len(source), 'sample')}, all there are"]
        seen = sides.count("train")
        if seen:
            what = f"{seen:,} of them have names that were trained on"
            notes.append(f"{what}: if they are the same images, these numbers are too good")
        return everything, notes
    chosen = everything[np.array([side == split for side in sides], bool)]
    if len(chosen) == 0:
        there = sorted({side for side in sides if side})
        hint = " or ".join(f"--split {name}" for name in (*there, "all"))
        raise DataError("E204", f"{source.where} has no {split} samples", hint=hint)
    return chosen, notes


def _are_its_data(run: Run, source: Source) -> bool:
    """Whether these are the samples that the run split, wherever they lie now: from the same place, or a copy."""
    path = run.recipe.data.path
    if path is not None and _same_place(source.where, path):
        return True
    before, now = _trained_on(run), record(source)
    return all(before[fact] == now[fact] for fact in ("keys", "labels", "sizes"))
