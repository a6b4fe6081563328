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

from kiln.data.fingerprint import compare_fingerprint
from kiln.data.source import Source, open_source
from kiln.data.split import read_split_csv
from kiln.data.storage import counted, shown
from kiln.errors import DataError, UsageError
from kiln.jobs.intake import open_recipe_source
from kiln.jobs.measure import measure
from kiln.run import RECIPE, RESOLVED, SPLIT, Run, read_yaml, write_atomically
from kiln.runtimes import BATCH_SIZE, Predictor, load

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
    output: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """Measure a model on labelled images, each number with its 95 % interval.

    Classes are matched by name. A run remembers its splits, so `val` means the samples it validated on, also where they
    were cut from one folder; a model file takes the splits that the data have.

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
        output: also write the result there, as JSON.
    Returns: metrics by name, `intervals`, `n`, `skipped`, `per_class`, `confusion`, `notes`.
    Raises: DataError: classes that the model does not know, an unreadable file, an empty split.
    """
    if split not in SPLITS:
        raise UsageError("E101", f"unknown split {split!r}", got=split, choices=SPLITS)
    if bad_files not in BAD_FILES:
        raise UsageError("E101", f"bad_files = {bad_files!r}", got=bad_files, choices=BAD_FILES)
    path = model.path if isinstance(model, Run) else Path(model)
    predictor = load(path, device=device, runtime=runtime, trust=trust)
    source, notes = _source(path, data)
    targets = _targets(predictor, source)
    indices, split_notes = _indices(path, source, split)
    measured = measure(
        predictor,
        source,
        indices,
        targets,
        split=split,
        batch_size=batch_size or BATCH_SIZE,
        skip_bad=bad_files == "skip",
        workers=_workers(workers),
    )
    result = {
        "model": str(path),
        "data": source.where,
        "split": split,
        **measured.to_dict(),
        "notes": [*notes, *split_notes, *_absent_classes(predictor, source, indices)],
    }
    if output is not None:
        write_atomically(Path(output), json.dumps(result, indent=1).encode())
    return result


def _workers(asked: int | None) -> int:
    return min(os.cpu_count() or 1, 8) if asked is None else asked


def _source(path: Path, data: Any) -> tuple[Source, list[str]]:
    """The data, and how they differ from what the run recorded."""
    if not (path / RECIPE).is_file():
        if data is None:
            raise UsageError("E103", "no data to evaluate on", hint=f"kiln evaluate {path} DATA")
        return open_source(data), []
    recipe = Run(path).recipe
    own = data is None or (recipe.data.path is not None and _same_place(data, recipe.data.path))
    if data is None and recipe.data.path is None:
        raise UsageError("E103", "the run was trained on objects, which it cannot open again", hint="name the data")
    moved = f"kiln evaluate {shlex.quote(str(path))} DATA, if it lies elsewhere now"
    source = open_recipe_source(recipe, None, moved=moved) if own else open_source(data)
    if not own or not (path / RESOLVED).exists():
        return source, []
    differences = compare_fingerprint(read_yaml(path / RESOLVED, kind="resolved")["facts"]["data"], source)
    return source, [f"the data changed since training: {line}" for line in differences]


def _same_place(a: Any, b: str) -> bool:
    return isinstance(a, str | os.PathLike) and os.path.realpath(a) == os.path.realpath(b)


def _targets(predictor: Predictor, source: Source) -> NDArray[Any]:
    if source.labels is None:
        raise DataError(
            "E204", f"{source.where} has no labels to compare with", hint="kiln predict names their classes"
        )
    return predictor.task.encode(source.labels, predictor.classes, given=source.class_names)


def _absent_classes(predictor: Predictor, source: Source, indices: NDArray[np.int64]) -> list[str]:
    labels = [source.labels[int(index)] for index in indices] if source.labels is not None else []
    absent = sorted(set(predictor.classes) - predictor.task.occurring(labels, source.class_names))
    return [f"{counted(len(absent), 'class')} of the model without a sample here: {shown(absent)}"] if absent else []


def _indices(path: Path, source: Source, split: str) -> tuple[NDArray[np.int64], list[str]]:
    """The samples of a split: by the data's own splits, else by the run's record, else everything."""
    everything = np.arange(len(source), dtype=np.int64)
    if split == "all":
        return everything, []
    recorded = read_split_csv(path / SPLIT) if (path / SPLIT).is_file() else {}
    known = np.array([key in recorded for key in source.keys], bool)
    if known.any():
        names = np.array([recorded[key].split if key in recorded else "" for key in source.keys])
        notes = [] if known.all() else [f"{counted(int((~known).sum()), 'sample')} new since training and in no split"]
        chosen = everything[names == split]
    elif source.splits is not None:
        notes, chosen = [], everything[np.array([name == split for name in source.splits], bool)]
    else:
        return everything, [f"the data have no splits: measured on {counted(len(source), 'sample')}, all there are"]
    if len(chosen) == 0:
        raise DataError(
            "E204",
            f"{source.where} has no {split} samples",
            choices=sorted(
                {*(recorded[key].split for key in source.keys if key in recorded), *filter(None, source.splits or ())}
            ),
            hint="--split val, or --split all",
        )
    return chosen, notes
