"""`check`: what is wrong with a data set, before anything is trained on it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from kiln import tasks
from kiln.data.checks.classes import class_findings, group_findings
from kiln.data.checks.confirm import Pictures
from kiln.data.checks.duplicates import copy_findings, empty_pictures, find_backdrops, find_copies
from kiln.data.checks.files import file_findings
from kiln.data.checks.findings import Finding, Findings, Place, by_severity
from kiln.data.checks.looks import look_at_all
from kiln.data.checks.quick import sides_of
from kiln.data.source import Source
from kiln.data.split import split_source
from kiln.data.storage import counted, shown
from kiln.errors import DataError, UsageError
from kiln.jobs.asked import asked_for
from kiln.jobs.intake import open_recipe_source
from kiln.recipe import Recipe
from kiln.reports.check_page import check_page
from kiln.run import write_atomically, writing

PAGE, TABLE = "check.html", "check.csv"


@dataclass(frozen=True)
class _Labelled:
    """What labels say of the samples; empty where the data has none, or wrong ones.

    Attributes:
        places: split and label of each sample.
        members: the classes of each sample.
        classes: all of them.
        own_splits: whether the splits are the data's own.
        faults: what is wrong with the labels.
    """

    places: list[Place]
    members: list[frozenset[str]]
    classes: tuple[str, ...]
    own_splits: bool
    faults: list[Finding]


def check(
    data: Any = None,
    output: str | os.PathLike[str] | None = None,
    *,
    recipe: Recipe | None = None,
    overrides: Mapping[str, Any] | None = None,
    tell: Callable[[str], None] | None = None,
    **settings: Any,
) -> Findings:
    """Look at every image once, and say what would make a model or its numbers worse.

    Args:
        data: as for `kiln.train`. Without splits of its own it is split as training with the same recipe would.
        output: a folder for `check.html`, to look at, and `check.csv`, to edit and give to `--decisions`.
        recipe: how to read and split the data; only its sections `data` and `task` and the seed count.
        overrides: fields of the recipe, such as {"data.label_column": "species"}.
        tell: called with what is being done.
        **settings: recipe fields by their short names, such as `workers`, threads (one per processor without it).
    Returns: all findings. Where the data cannot be used, `usable` is False and the findings say why.
    Raises: DataError: there is nothing to look at. UsageError: no data named.
    """
    began = time.monotonic()
    asked = asked_for(data, recipe, overrides, settings)
    recipe, data = asked.recipe, asked.data
    if data is None and recipe.data.path is None:
        raise UsageError("E103", "no data: nothing to check", hint="kiln check photos/")
    workers = recipe.data.workers if isinstance(recipe.data.workers, int) else os.cpu_count() or 1
    try:
        source = open_recipe_source(recipe, data)
    except DataError as error:
        if error.code not in ("E203", "E205"):
            raise
        faults = (_fault(error),)
        findings = Findings(str(recipe.data.path), 0, {}, faults, {}, usable=False, seconds=time.monotonic() - began)
        if output is not None:
            _write(findings, None, Path(output))
        return findings
    labelled = _read_labels(source, recipe)
    found = [*labelled.faults, *(Finding("note", note) for note in source.notes)]
    found += class_findings(labelled.members, [place.split for place in labelled.places], labelled.classes)
    found += _look(source, labelled, recipe, workers=workers, tell=tell)
    unreadable = sum(finding.code == "unreadable" for finding in found)
    findings = Findings(
        source.where,
        len(source),
        _sizes(labelled.places),
        by_severity(found),
        {key: labelled.places[index] for index, key in enumerate(source.keys)},
        usable=not any(finding.code == "unusable" for finding in found) and unreadable < len(source),
        seconds=time.monotonic() - began,
    )
    if output is not None:
        _write(findings, source, Path(output), max_pixels=recipe.data.max_pixels)
    return findings


def _fault(error: DataError) -> Finding:
    return Finding("unusable", "\n".join([error.what, *error.details, *([error.hint] if error.hint else [])]))


def _sizes(places: Sequence[Place]) -> dict[str, int]:
    names = [name for name in ("train", "val", "test", "") if any(place.split == name for place in places)]
    return {name: sum(place.split == name for place in places) for name in names}


def _read_labels(source: Source, recipe: Recipe) -> _Labelled:
    """Task, classes and splits as a training would have them; what is wrong becomes a finding."""
    labels = source.labels
    number = len(source)
    own = [split or "" for split in source.splits or ("",) * number]
    if labels is None:
        fault = Finding("unusable", f"{source.where} has no labels: class folders, or a table with columns path,label")
        return _Labelled([Place(split, "") for split in own], [frozenset()] * number, (), True, [fault])
    faults: list[Finding] = []
    unlabelled = tuple(key for key, label in zip(source.keys, labels, strict=True) if not label)
    members: list[frozenset[str]] = [frozenset()] * number
    classes: tuple[str, ...] = ()
    sides = own
    try:
        task = tasks.choose(labels, name=recipe.task.name, separator=recipe.task.separator)
        names_of = lru_cache(maxsize=None)(lambda label: task.occurring([label], source.class_names))
        classes = task.class_names(labels, source.class_names)
        members = [names_of(label) for label in labels]
        split = split_source(
            source,
            task.strata(labels),
            val_fraction=recipe.data.val_fraction,
            test_fraction=recipe.data.test_fraction,
            seed=recipe.training.seed,
        )
        sides = sides_of(split, number)
        if len(split.train) == 0:
            faults.append(Finding("unusable", f"{source.where} has no training samples"))
    except DataError as error:
        if unlabelled:
            said = f"{counted(len(unlabelled), 'sample')} without a label: {shown(unlabelled)}"
            faults.append(Finding("unlabelled", said, unlabelled, ("drop",) * len(unlabelled)))
        faults.append(_fault(error))
    places = [Place(side, label) for side, label in zip(sides, labels, strict=True)]
    own_splits = any(split == "val" for split in own) or any(split == "test" for split in own)
    return _Labelled(places, members, classes, own_splits, faults)


def _look(
    source: Source, labelled: _Labelled, recipe: Recipe, *, workers: int, tell: Callable[[str], None] | None
) -> list[Finding]:
    """What the images themselves tell."""
    max_pixels = recipe.data.max_pixels
    say = tell or (lambda _: None)
    say(f"decoding {counted(len(source), 'image')}")
    looks = look_at_all(source, max_pixels=max_pixels, workers=workers)
    splits = [place.split for place in labelled.places]
    found = file_findings(source.keys, looks, empty_pictures(looks))
    found += group_findings(source.keys, source.groups, splits) if labelled.own_splits else []
    pictures = Pictures(source, max_pixels=max_pixels)
    copies = find_copies(source, looks, pictures=pictures, workers=workers, tell=tell)
    found += copy_findings(source.keys, labelled.places, copies, own_splits=labelled.own_splits)
    if copies.left_out:
        said = f"so many images are alike that of {copies.left_out:,} likely pairs only the closest were compared"
        found.append(Finding("note", said))
    backdrops = find_backdrops(looks, splits, copies=copies, pictures=pictures, workers=workers)
    for group in backdrops:
        sides = " and ".join(sorted({splits[index] for index in group}))
        said = f"{counted(len(group), 'image')} before the same backdrop in {sides}"
        found.append(Finding("backdrop_across", said, tuple(source.keys[index] for index in group)))
    return found


def _write(findings: Findings, source: Source | None, folder: Path, **options: Any) -> None:
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / TABLE, findings.to_csv().encode("utf-8", "surrogateescape"))
    write_atomically(folder / PAGE, check_page(findings, source, **options).encode("utf-8", "replace"))
