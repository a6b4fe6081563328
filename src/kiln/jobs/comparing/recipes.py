"""Recipes compared by their trainings: a seed is one drawing, and three are the fewest that show how much they scatter."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kiln.data.storage import counted
from kiln.errors import UsageError
from kiln.jobs.comparing.contenders import Asking, Contender, align, choose_split, contenders, hear
from kiln.language import tr
from kiln.measure.paired import holm
from kiln.measure.seeds import LEAST_SEEDS, paired_by_seed, welch
from kiln.recipe import Recipe
from kiln.reports.comparison import ACCURACY, RecipeComparison, RecipeFacts, RecipePair
from kiln.run import DONE, RECIPE, Run, runs_in
from kiln.runtimes import MODEL_NAME

SEED = "training.seed"
_PLACE = ("run.output", "run.name")  # where a run lies changes nothing of it


@dataclass(frozen=True)
class Group:
    """The runs of one recipe."""

    name: str
    runs: tuple[Contender, ...]

    @property
    def recipe(self) -> Recipe:
        """Of the first run."""
        return _run(self.runs[0]).recipe

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of each run."""
        return tuple(map(_seed, self.runs))


def groups_among(models: Sequence[Any]) -> dict[str, list[Run]]:
    """Folders of finished runs among what is to be compared, by name; empty where there is none.

    Raises: UsageError: some are folders of runs, and some are not.
    """
    folders = [model for model in models if _is_folder_of_runs(model)]
    if folders and len(folders) < len(models):
        other = next(model for model in models if not _is_folder_of_runs(model))
        what = f"{os.fspath(folders[0])} is a folder of runs, and {getattr(other, 'path', other)} is not"
        raise UsageError("E103", what, expected="models, or folders that each hold the runs of one recipe")
    names = [Path(folder).resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = [os.fspath(folder) for folder in folders]
    return {
        name: [run for run in runs_in(Path(folder)) if run.status["state"] == DONE]
        for name, folder in zip(names, folders, strict=True)
    }


def compare_recipes(groups: Mapping[str, Sequence[Any]], asking: Asking) -> RecipeComparison:
    """Compare recipes with the first of them, by the means over their runs.

    Args:
        groups: name -> runs, which differ in their seed only.
        asking: how models are asked.
    Raises: UsageError: fewer than two groups, or than three seeds in one, or a group of several recipes.
    """
    if len(groups) < 2:
        raise UsageError("E101", f"{counted(len(groups), 'group')} of runs", expected="two or more recipes")
    held = [Group(name, tuple(contenders(runs, asking))) for name, runs in groups.items()]
    for group in held:
        _require_one_recipe(group)
    held = [Group(group.name, tuple(sorted(group.runs, key=_seed))) for group in held]
    models = [model for group in held for model in group.runs]
    split, notes = choose_split(models, asking)
    facts, keys = [], []
    for group in held:
        values: dict[str, list[float]] = {}
        for model in group.runs:
            heard, more = hear(model, model, split)
            alone = align([heard])
            keys.append(frozenset(alone.keys))
            notes += more
            for name, value in alone.values[0].items():
                values.setdefault(name, []).append(value)
        finite = {name: tuple(found) for name, found in values.items() if np.isfinite(found).all()}
        paths = tuple(os.fspath(model.path) for model in group.runs)
        facts.append(RecipeFacts(group.name, paths, group.seeds, finite))
    if len(set(keys)) > 1:
        notes.append(tr("the runs were not all measured on the same samples: the spread over seeds contains that too"))
    return RecipeComparison(split, tuple(facts), tuple(_pairs(held, facts)), tuple(dict.fromkeys(notes)))


def _pairs(groups: Sequence[Group], facts: Sequence[RecipeFacts]) -> list[RecipePair]:
    first, before = groups[0], facts[0]
    found = []
    for group, after in zip(groups[1:], facts[1:], strict=True):
        shared = [name for name in before.metrics if name in after.metrics]
        by_seed = {
            name: difference
            for name in shared
            if (
                difference := paired_by_seed(
                    dict(zip(before.seeds, before.metrics[name], strict=True)),
                    dict(zip(after.seeds, after.metrics[name], strict=True)),
                )
            )
        }
        by_mean = {name: welch(before.metrics[name], after.metrics[name]) for name in shared}
        found.append((group, by_mean, by_seed))
    corrected = holm([by_mean[ACCURACY].p for _, by_mean, _ in found])
    return [
        RecipePair(first.name, group.name, by_mean, by_seed, p, _differences(first.recipe, group.recipe))
        for (group, by_mean, by_seed), p in zip(found, corrected, strict=True)
    ]


def _require_one_recipe(group: Group) -> None:
    """Hold that runs are trainings of one recipe, enough of them and no seed twice. Raises: UsageError."""
    for model in group.runs:
        _run(model)
    seeds = sorted(set(group.seeds))
    if len(seeds) < len(group.runs):
        twice = next(seed for seed in seeds if group.seeds.count(seed) > 1)
        what = f"{group.name} holds several runs of seed {twice}: one training twice says nothing of chance"
        raise UsageError("E103", what, hint="name each training once, and train with other seeds")
    for model in group.runs[1:]:
        differs = _differences(group.recipe, _run(model).recipe)
        if differs:
            raise UsageError(
                "E103",
                f"{group.name} is not one recipe: {group.runs[0].name} and {model.name} differ in more than the seed",
                details=[f"{name}: {here!r} and {there!r}" for name, (here, there) in differs.items()],
                hint="group the runs by recipe: --group NAME RUN RUN RUN --group OTHER RUN RUN RUN",
            )
    if len(seeds) < LEAST_SEEDS:
        raise UsageError(
            "E103",
            f"{group.name} has {counted(len(seeds), 'finished run')}, which cannot show how much the seed matters",
            expected=f"at least {LEAST_SEEDS} seeds of each recipe",
            hint="kiln train ... --seed N for further seeds; two single models: kiln compare RUN RUN",
        )


def _differences(one: Recipe, other: Recipe) -> dict[str, tuple[Any, Any]]:
    """The settings of two recipes that differ and could change what comes out, without the seed."""
    passed = {SEED, *_PLACE, *Recipe.how_fields()}
    return {name: values for name, values in one.differences(other).items() if name not in passed}


def _seed(model: Contender) -> int:
    return _run(model).recipe[SEED]


def _run(model: Contender) -> Run:
    """The run that a model must be. Raises: UsageError: it is none."""
    return model.run if model.run is not None else Run(model.path)


def _is_folder_of_runs(model: Any) -> bool:
    if isinstance(model, Run):
        return False
    path = Path(os.fspath(model))
    if not path.is_dir() or (path / RECIPE).is_file() or (path / MODEL_NAME).is_file():
        return False
    return len(runs_in(path)) > 0
