"""`compare`: is one model better than another, sample by sample? Is one recipe better than another, seed by seed?"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kiln.errors import ResourceError, UsageError
from kiln.jobs.comparing.contenders import (
    Aligned,
    Asking,
    Contender,
    align,
    choose_split,
    contenders,
    hear,
    open_pictures,
    require_models,
)
from kiln.jobs.comparing.recipes import compare_recipes, groups_among
from kiln.jobs.comparing.speed import Speed, measure_speed, num_parameters, size_on_disk
from kiln.jobs.evaluate import SPLITS
from kiln.language import tr
from kiln.measure.paired import compare_shares, holm
from kiln.measure.paired_metrics import Answers, class_changes, compare_metrics
from kiln.measure.side_by_side import speed_ratio
from kiln.reports.compare_page import compare_page, recipes_page
from kiln.reports.comparison import ACCURACY, Comparison, Flip, ModelFacts, Pair, RecipeComparison
from kiln.run import Run, write_atomically

PAGE, TABLE, FACTS = "compare.html", "flips.csv", "compare.json"


def compare(
    *models: str | os.PathLike[str] | Run,
    data: Any = None,
    split: str | None = None,
    groups: Mapping[str, Sequence[str | os.PathLike[str] | Run]] | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
    device: str = "auto",
    trust: Sequence[str] = (),
    speed: bool = True,
    output: str | os.PathLike[str] | None = None,
) -> Comparison | RecipeComparison:
    """Compare models with the first of them on the same samples; or recipes, each by several trainings.

    What a run wrote down of its model is used as it stands; other models are asked now. Classes are matched by name,
    samples by key; those that not all models have are left out and counted.

    Args:
        models: run folders, model files, `.onnx` files, or `Run`s, at least two. Folders that each hold the runs of one
            recipe, which differ in their seed only, are compared as recipes.
        data: labelled images for all; None takes each run's own.
        split: `train`, `val`, `test` or `all`; None takes `test`, and where there is none `val`.
        groups: instead of models: name of a recipe -> its runs, at least 3.
        batch_size: images per forward pass.
        workers: threads that decode.
        device: where to compute.
        trust: code that a model file may name.
        speed: also time the networks, and tell their size.
        output: a folder for `compare.html`, `compare.json` and, for models, `flips.csv`.
    Raises: UsageError: fewer than two models, or than three seeds of a recipe. DataError: classes or labels differ.
    """
    if split is not None and split not in SPLITS:
        raise UsageError("E101", f"unknown split {split!r}", got=split, choices=SPLITS)
    if models and groups:
        raise UsageError("E103", "both models and groups to compare", hint="name either")
    asking = Asking(data, split, batch_size, workers, device, tuple(trust))
    recipes = groups or groups_among(models)
    if recipes:
        found = compare_recipes(recipes, asking)
        if output is not None:
            _write(Path(output), found, recipes_page(found))
        return found
    require_models(models)
    return _compare_models(contenders(models, asking), asking, speed=speed, output=output)


def _compare_models(
    models: Sequence[Contender], asking: Asking, *, speed: bool, output: str | os.PathLike[str] | None
) -> Comparison:
    split, notes = choose_split(models, asking)
    reference = next((model for model in models if model.run is not None), models[0])
    heard = []
    for model in models:
        said, more = hear(model, reference, split)
        heard.append(said)
        notes += more
    common = align(heard)
    source, why = open_pictures(models, asking, split) if speed or output is not None else (None, "")
    times = measure_speed(models, source, common.keys) if speed and source is not None else None
    if speed and times is None:
        notes.append(tr("speed was not measured: {why}", why=why or tr("there are no images to measure it on")))
    notes += [
        tr("left out of {name}, because not all models have them: {count}", name=model.name, count=f"{count:,}")
        for model, count in zip(models, common.left_out, strict=True)
        if count
    ]
    found = Comparison(
        split=split,
        n=len(common.keys),
        classes=common.classes,
        models=tuple(_facts(models, common, times, sizes=speed)),
        pairs=tuple(_pairs(models, common, times)),
        notes=tuple(dict.fromkeys(notes)),
    )
    if output is not None:
        folder = Path(output)
        _write(folder, found, compare_page(found, source))
        write_atomically(folder / TABLE, _flips_csv(found.pairs).encode("utf-8", "surrogateescape"))
    return found


def _facts(
    models: Sequence[Contender], common: Aligned, times: Sequence[Speed] | None, *, sizes: bool
) -> list[ModelFacts]:
    return [
        ModelFacts(
            name=model.name,
            path=os.fspath(model.path),
            metrics={name: value for name, value in common.values[index].items() if np.isfinite(value)},
            left_out=common.left_out[index],
            bytes_on_disk=size_on_disk(model) if sizes else None,
            num_parameters=num_parameters(model) if sizes else None,
            images_per_second=times[index].images_per_second if times is not None else None,
            runtime=times[index].runtime if times is not None else "",
        )
        for index, model in enumerate(models)
    ]


def _pairs(models: Sequence[Contender], common: Aligned, times: Sequence[Speed] | None) -> list[Pair]:
    """The first model and each other, p values corrected for their number."""
    first = common.answers[0]
    differences = [compare_shares(first.right, other.right, common.groups) for other in common.answers[1:]]
    corrected = holm([difference.p for difference in differences])
    others = {name: higher for name, higher in common.higher_is_better.items() if name != ACCURACY}
    return [
        Pair(
            first=models[0].name,
            second=models[index].name,
            accuracy=difference,
            p=p,
            metrics=compare_metrics(first, common.answers[index], others, groups=common.groups),
            classes=tuple(class_changes(first, common.answers[index], common.groups)),
            agreement=float((first.given == common.answers[index].given).all(axis=1).mean()),
            flips=tuple(_flips(first, common.answers[index], common)),
            speed=speed_ratio(times[0].seconds, times[index].seconds) if times is not None else None,
        )
        for index, (difference, p) in enumerate(zip(differences, corrected, strict=True), 1)
    ]


def _flips(first: Answers, second: Answers, common: Aligned) -> list[Flip]:
    def text(row: NDArray[np.bool_]) -> str:
        return ", ".join(common.classes[index] for index in np.flatnonzero(row))

    gained = second.right.astype(int) - first.right
    return [
        Flip(common.keys[row], text(first.truth[row]), text(first.given[row]), text(second.given[row]), bool(sign > 0))
        for sign in (1, -1)
        for row in np.flatnonzero(gained == sign)
    ]


def _write(folder: Path, found: Comparison | RecipeComparison, page: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError("E401", f"cannot make {folder}: {error.strerror}", hint="another --output") from error
    text = json.dumps({"version": 1, **found.to_dict()}, indent=1, default=str)
    write_atomically(folder / FACTS, f"{text}\n".encode("utf-8", "surrogateescape"))
    write_atomically(folder / PAGE, page.encode("utf-8", "replace"))


def _flips_csv(pairs: Sequence[Pair]) -> str:
    """A row for each sample that one of two models alone got right."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["first", "second", "key", "label", "first_says", "second_says", "change"])
    for pair in pairs:
        for flip in pair.flips:
            change = "wrong to right" if flip.gained else "right to wrong"
            writer.writerow([pair.first, pair.second, flip.key, flip.label, flip.first, flip.second, change])
    return text.getvalue()
