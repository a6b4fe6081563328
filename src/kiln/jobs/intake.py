"""From "here are my images" to samples, targets and splits: what every verb that reads labelled data begins with."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kiln import tasks
from kiln.data import listing
from kiln.data.audit import BadFile, check_headers
from kiln.data.checks.decisions import apply_decisions
from kiln.data.checks.quick import quick_check, quick_notes
from kiln.data.folds import fold_split
from kiln.data.source import Source, open_source
from kiln.data.split import Split, split_source
from kiln.data.storage import counted, shown
from kiln.errors import DataError
from kiln.recipe import Recipe

Indices = NDArray[np.int64]
_ASKED = ("root", "path_column", "label_column", "split_column", "group_column", "class_names")


@dataclass(frozen=True)
class Intake:
    """Labelled data, ready to train on.

    Attributes:
        source: the samples.
        task: what their labels mean.
        classes: names, in the order of the model's outputs.
        targets: (N, ...) for every sample of the source.
        split: indices of train, val and test.
        notes: findings to print.
    """

    source: Source
    task: tasks.Task
    classes: tuple[str, ...]
    targets: NDArray[Any]
    split: Split
    notes: tuple[str, ...]


def open_recipe_source(recipe: Recipe, data: Any, *, moved: str = "") -> Source:
    """Open what a recipe (or an object given from Python) names.

    Args:
        recipe: names the data.
        data: instead of what the recipe names.
        moved: the command that gives another place, for a recipe that was written down earlier or elsewhere.
    """
    section = recipe.data
    if moved and data is None and section.path is not None and not os.path.lexists(section.path):
        raise DataError("E201", f"there is no {section.path}, which the run was trained on", hint=moved)
    where = section.path if data is None else data
    asked = {name: getattr(section, name) for name in _ASKED}
    if isinstance(where, str | os.PathLike) and section.cache in ("auto", "disk") and not any(asked.values()):
        source = listing.recall(where)
        if source is None:
            source = open_source(where)
            listing.remember(source, cache_size=section.cache_size)
    else:
        source = open_source(where, **asked)
    return source if section.decisions is None else apply_decisions(source, section.decisions)


def take_in(recipe: Recipe, data: Any, *, moved: str = "") -> Intake:
    """Open the data of a training, tell its task and classes, and split it; arguments as for `open_recipe_source`.

    Raises: DataError: nothing to train on, wrong labels, too few classes.
    """
    source = open_recipe_source(recipe, data, moved=moved)
    labels = source.labels
    if labels is None:
        raise DataError(
            "E204", f"{source.where} has no labels", hint="class folders, or a table with columns path,label"
        )
    task = tasks.choose(labels, name=recipe.task.name, separator=recipe.task.separator)
    classes = _class_names(task, source, labels)
    targets = task.encode(labels, classes, given=source.class_names)
    split = _split(source, task.strata(labels), recipe)
    if len(split.train) == 0:
        raise DataError(
            "E204", f"{source.where} has no training samples", hint="a folder called train, or fewer held out"
        )
    notes = [*source.notes, *_split_notes(split), *_untrained(task, source, labels, split)]
    if not moved:  # a run that is resumed was told when it began
        notes += _looked_at(task, source, labels, split, classes)
    return Intake(source, task, classes, targets, split, tuple(notes))


def _split(source: Source, strata: Sequence[str], recipe: Recipe) -> Split:
    """The split that a recipe asks for; with folds, that of its own, or of the first where a verb only looks at the data."""
    test_fraction, seed = recipe.data.test_fraction, recipe.training.seed
    if recipe.data.folds:
        fold = recipe.data.fold or 1
        return fold_split(
            source, strata, fold=fold, num_folds=recipe.data.folds, test_fraction=test_fraction, seed=seed
        )
    return split_source(source, strata, val_fraction=recipe.data.val_fraction, test_fraction=test_fraction, seed=seed)


def _class_names(task: tasks.Task, source: Source, labels: Sequence[str]) -> tuple[str, ...]:
    try:
        return task.class_names(labels, source.class_names)
    except DataError as error:
        if error.code == "E203" and "" in labels:
            source.require_labels()  # the same fault, with the rows of the table
        raise


def _split_notes(split: Split) -> list[str]:
    notes = list(split.notes)
    if split.lent:
        moved = f"{counted(len(split.lent), 'sample')} changed sides"
        notes.append(f"{moved} so that each class trains and validates: {shown(split.lent)}")
    return notes


def _untrained(task: tasks.Task, source: Source, labels: Sequence[str], split: Split) -> list[str]:
    def occurring(*parts: Indices) -> frozenset[str]:
        return task.occurring([labels[int(index)] for part in parts for index in part], source.class_names)

    unseen = sorted(occurring(split.val, split.test) - occurring(split.train))
    return [f"{counted(len(unseen), 'class')} held out but never trained on: {shown(unseen)}"] if unseen else []


def _looked_at(
    task: tasks.Task, source: Source, labels: Sequence[str], split: Split, classes: Sequence[str]
) -> list[str]:
    """What the check tells without decoding images, except what the split and `_untrained` have told."""
    members_of = {label: task.occurring([label], source.class_names) for label in set(labels)}
    found = quick_check(source, split, classes, [members_of[label] for label in labels])
    own = {*(source.splits or ()), ""} - {"train"}  # of a split that was cut the split itself has told
    told = [
        one for one in found if one.code == "group_across" or (one.code == "class_missing" and one.split not in own)
    ]
    return quick_notes([one for one in found if one not in told], where=source.where)


def check_headers_of(source: Source, split: Split, *, max_pixels: int) -> list[BadFile]:
    """The files that cannot become images by their headers, before any time is spent on training."""
    return [
        bad
        for name, indices in split.parts().items()
        for bad in check_headers(source, indices, max_pixels=max_pixels, split=name)
    ]


def refuse_bad_headers(bad: Sequence[BadFile], split: Split, *, max_bad_fraction: float, skip_bad: bool) -> None:
    """Hold that the bad files may be gone on with.

    Raises: DataError: a validation or test file is bad (unless `skip_bad`), or too many training files are.
    """
    for name, indices in split.parts().items():
        found = [file for file in bad if file.split == name]
        if name == "train" and len(found) > max_bad_fraction * len(indices):
            enough = min(100 * len(found) // len(indices) + 1, 100) / 100
            raise DataError(
                "E206",
                f"{len(found)} of {len(indices)} training files cannot be read",
                expected=f"at most {max_bad_fraction:.1%} (data.max_bad_fraction)",
                details=_listed(found),
                hint=f"mend or remove them (kiln check DATA lists them all), or allow more with "
                f"--set data.max_bad_fraction={enough:g}",
            )
        if name != "train" and found and not skip_bad:
            raise DataError(
                "E202",
                f"{len(found)} of {len(indices)} {name} files cannot be read",
                details=_listed(found),
                hint="mend or remove them, or leave them out and have it said with --bad-files skip",
            )


def _listed(bad: Sequence[BadFile]) -> list[str]:
    return [f"{file.key}: {file.detail}" for file in bad[:20]] + (
        [f"... {len(bad) - 20} more"] if len(bad) > 20 else []
    )


def stem_of(data: Any) -> str:
    """A short name for data: `photos/` and `photos.zip` are both `photos`."""
    if isinstance(data, str | Path):
        name = Path(data).resolve().name
        for suffix in (".tar.gz", ".tar.bz2", ".tar.xz", ".tgz", ".zip", ".tar", ".csv", ".tsv", ".txt"):
            name = name.removesuffix(suffix)
        return name or "data"
    return type(data).__name__.lower()
